{{/*
The containers beside the controller. None has leader election or a livenessprobe of its own: they
wait while the controller's Probe says "not ready", and end when its socket does.
*/}}
{{- define "rds-csi.sidecars" -}}
{{- $args := list "--extra-create-metadata" "--timeout=60s" }}
{{- $capacity := include "rds-csi.topology" . | empty | not }}
{{- if $capacity }}{{ $args = concat $args (list "--enable-capacity" "--capacity-ownerref-level=2") }}{{ end }}
{{- include "rds-csi.sidecar" (dict "root" . "name" "provisioner" "image" .Values.sidecars.provisioner.image "args" $args "owner" $capacity) }}
{{ include "rds-csi.sidecar" (dict "root" . "name" "attacher" "image" .Values.sidecars.attacher.image "args" (list "--timeout=60s")) }}
{{ include "rds-csi.sidecar" (dict "root" . "name" "resizer" "image" .Values.sidecars.resizer.image "args" (list "--resize-timeout=60s")) }}
{{- if .Values.sidecars.healthMonitor.enabled }}
{{ include "rds-csi.sidecar" (dict "root" . "name" "health-monitor" "image" .Values.sidecars.healthMonitor.image "args" (list)) }}
{{- end }}
{{- if .Values.snapshots.enabled }}
{{ include "rds-csi.sidecar" (dict "root" . "name" "snapshotter" "image" .Values.sidecars.snapshotter.image "args" (list "--timeout=60s")) }}
{{- end }}
{{- end }}

{{- define "rds-csi.sidecar" -}}
- name: {{ .name }}
  image: {{ .image }}
  imagePullPolicy: {{ .root.Values.image.pullPolicy }}
  args:
    - --csi-address=/csi/csi.sock
    - --v={{ .root.Values.sidecars.logLevel }}
    {{- range .args }}
    - {{ . }}
    {{- end }}
  {{- if .owner }}
  # The Deployment owns what is published of the capacity.
  env:
    - { name: POD_NAME, valueFrom: { fieldRef: { fieldPath: metadata.name } } }
    - { name: NAMESPACE, valueFrom: { fieldRef: { fieldPath: metadata.namespace } } }
  {{- end }}
  resources: {{- toYaml .root.Values.sidecars.resources | nindent 4 }}
  securityContext: {{- include "rds-csi.confined" . | nindent 4 }}
  volumeMounts:
    - { name: socket, mountPath: /csi }
{{- end }}
