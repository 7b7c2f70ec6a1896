{{/* Labels of all objects. */}}
{{- define "rds-csi.labels" -}}
app.kubernetes.io/name: rds-csi
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{/* What selects the pods of a part: (list $ "controller"). */}}
{{- define "rds-csi.selector" -}}
app.kubernetes.io/name: rds-csi
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{/* An image of ours: (list $ "rds-csi-controller"). */}}
{{- define "rds-csi.image" -}}
{{- $root := index . 0 -}}
{{ $root.Values.image.registry }}/{{ index . 1 }}:{{ $root.Values.image.tag | default $root.Chart.AppVersion }}
{{- end }}

{{- define "rds-csi.pullSecrets" -}}
{{- with .Values.image.pullSecrets -}}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end }}

{{/* A pod that may nothing. */}}
{{- define "rds-csi.confined" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: { drop: [ALL] }
{{- end }}

{{/* KEY=VALUE,... of a map. */}}
{{- define "rds-csi.segments" -}}
{{- $all := list -}}
{{- range $key, $value := . }}{{ $all = append $all (printf "%s=%s" $key $value) }}{{ end -}}
{{ join "," $all }}
{{- end }}

{{/* The port in an appliance's URL. */}}
{{- define "rds-csi.managementPort" -}}
{{- $port := regexFind ":[0-9]+/?$" . | trimPrefix ":" | trimSuffix "/" -}}
{{ $port | default (ternary "22" "443" (hasPrefix "ssh:" .)) }}
{{- end }}

{{/*
Not empty if some appliance is not reached from every node. Only then is capacity published: where
nodes have no topology, the provisioner (6.4.0) deletes each CSIStorageCapacity that it makes, since
it compares its empty labels with those of the API server, which has none; and a driver of which
capacity is announced and not published gets no pod whose volume waits for it.
*/}}
{{- define "rds-csi.topology" -}}
{{- $all := list .Values.rds.topology -}}
{{- range .Values.appliances }}{{ $all = append $all .topology }}{{ end -}}
{{- range compact $all }}yes{{ end -}}
{{- end }}
