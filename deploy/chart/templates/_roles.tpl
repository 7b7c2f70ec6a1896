{{/* A role and its binding to a service account: root, account, name, kind, rules. */}}
{{- define "rds-csi.role" -}}
{{- $kind := .kind | default "ClusterRole" -}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: {{ $kind }}
metadata:
  name: {{ .name }}
  {{- if eq $kind "Role" }}
  namespace: {{ .root.Release.Namespace }}
  {{- end }}
  labels: {{- include "rds-csi.labels" .root | nindent 4 }}
rules:
  {{- include .rules .root | nindent 2 }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: {{ $kind }}Binding
metadata:
  name: {{ .name }}
  {{- if eq $kind "Role" }}
  namespace: {{ .root.Release.Namespace }}
  {{- end }}
  labels: {{- include "rds-csi.labels" .root | nindent 4 }}
roleRef: { apiGroup: rbac.authorization.k8s.io, kind: {{ $kind }}, name: {{ .name }} }
subjects:
  - { kind: ServiceAccount, name: {{ .account }}, namespace: {{ .root.Release.Namespace }} }
{{- end }}

{{/* Ours: docs/kubernetes.md says what for. */}}
{{- define "rds-csi.rules.controller" -}}
- { apiGroups: [""], resources: [persistentvolumes], verbs: [get, list, watch, patch] }
- { apiGroups: [""], resources: [pods], verbs: [list] }
- { apiGroups: [""], resources: [nodes], verbs: [list, watch] }
- { apiGroups: [storage.k8s.io], resources: [volumeattachments], verbs: [list, watch] }
- { apiGroups: [events.k8s.io], resources: [events], verbs: [create, patch] }
{{- end }}

{{- define "rds-csi.rules.lease" -}}
- { apiGroups: [coordination.k8s.io], resources: [leases], verbs: [create] }
- { apiGroups: [coordination.k8s.io], resources: [leases], resourceNames: [{{ .Values.driverName }}], verbs: [get, update] }
{{- end }}

{{- define "rds-csi.rules.shim" -}}
- { apiGroups: [storage.k8s.io], resources: [volumeattachments, csinodes], verbs: [get] }
# For Events.
- { apiGroups: [""], resources: [persistentvolumes], verbs: [get] }
- { apiGroups: [events.k8s.io], resources: [events], verbs: [create, patch] }
{{- end }}

{{/* The sidecars': what deploy/kubernetes/rbac.yaml of each project says for these versions. */}}
{{- define "rds-csi.rules.provisioner" -}}
- { apiGroups: [""], resources: [persistentvolumes], verbs: [get, list, watch, create, patch, delete] }
- { apiGroups: [""], resources: [persistentvolumeclaims], verbs: [get, list, watch, update] }
- { apiGroups: [""], resources: [events], verbs: [list, watch, create, update, patch] }
- { apiGroups: [""], resources: [nodes], verbs: [get, list, watch] }
- { apiGroups: [storage.k8s.io], resources: [storageclasses, csinodes, volumeattachments], verbs: [get, list, watch] }
{{- if .Values.snapshots.enabled }}
- { apiGroups: [snapshot.storage.k8s.io], resources: [volumesnapshots], verbs: [get, list, watch, update] }
- { apiGroups: [snapshot.storage.k8s.io], resources: [volumesnapshotcontents], verbs: [get, list] }
{{- end }}
{{- end }}

{{- define "rds-csi.rules.capacity" -}}
- { apiGroups: [storage.k8s.io], resources: [csistoragecapacities], verbs: [get, list, watch, create, update, patch, delete] }
# From the pod up to the Deployment, which owns what is published.
- { apiGroups: [""], resources: [pods], verbs: [get] }
- { apiGroups: [apps], resources: [replicasets], verbs: [get] }
{{- end }}

{{- define "rds-csi.rules.attacher" -}}
- { apiGroups: [""], resources: [persistentvolumes], verbs: [get, list, watch, patch] }
- { apiGroups: [storage.k8s.io], resources: [csinodes], verbs: [get, list, watch] }
- { apiGroups: [storage.k8s.io], resources: [volumeattachments], verbs: [get, list, watch, patch] }
- { apiGroups: [storage.k8s.io], resources: [volumeattachments/status], verbs: [patch] }
{{- end }}

{{- define "rds-csi.rules.resizer" -}}
- { apiGroups: [""], resources: [persistentvolumes], verbs: [get, list, watch, patch] }
- { apiGroups: [""], resources: [persistentvolumeclaims, pods], verbs: [get, list, watch] }
- { apiGroups: [""], resources: [persistentvolumeclaims/status], verbs: [patch] }
- { apiGroups: [""], resources: [events], verbs: [list, watch, create, update, patch] }
- { apiGroups: [storage.k8s.io], resources: [volumeattributesclasses], verbs: [get, list, watch] }
{{- end }}

{{- define "rds-csi.rules.healthMonitor" -}}
- { apiGroups: [""], resources: [persistentvolumes, persistentvolumeclaims, nodes, pods], verbs: [get, list, watch] }
- { apiGroups: [""], resources: [events], verbs: [get, list, watch, create, patch] }
{{- end }}

{{- define "rds-csi.rules.snapshotter" -}}
- { apiGroups: [""], resources: [events], verbs: [list, watch, create, update, patch] }
- { apiGroups: [snapshot.storage.k8s.io], resources: [volumesnapshotclasses], verbs: [get, list, watch] }
- { apiGroups: [snapshot.storage.k8s.io], resources: [volumesnapshotcontents], verbs: [get, list, watch, update, patch] }
- { apiGroups: [snapshot.storage.k8s.io], resources: [volumesnapshotcontents/status], verbs: [update, patch] }
{{- end }}
