{{- define "vnode.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "vnode.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" }}
{{- else if contains (include "vnode.name" .) .Release.Name }}
{{- .Release.Name | trunc 50 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "vnode.name" .) | trunc 50 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "vnode.selector" -}}
app.kubernetes.io/name: {{ include "vnode.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "vnode.labels" -}}
{{ include "vnode.selector" . }}
app.kubernetes.io/part-of: vnode
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* labels, and annotations where there are any; the second argument is a map of more annotations */}}
{{- define "vnode.meta" -}}
{{- $ctx := index . 0 -}}
{{- $more := index . 1 -}}
labels:
  {{- include "vnode.labels" $ctx | nindent 2 }}
{{- with merge (dict) $more $ctx.Values.commonAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{- define "vnode.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{ default (include "vnode.fullname" .) .Values.serviceAccount.name }}
{{- else -}}
{{ required "serviceAccount.name must be set when serviceAccount.create is false" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- define "vnode.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ default .Chart.AppVersion .Values.image.tag }}
{{- end }}
{{- end }}

{{- define "vnode.subjects" -}}
subjects:
  - kind: ServiceAccount
    name: {{ include "vnode.serviceAccount" . }}
    namespace: {{ .Release.Namespace }}
{{- end }}

{{- define "vnode.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "vnode.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{/* never on a node that the operator runs itself, nor on another's virtual node */}}
{{- define "vnode.offVirtualNodes" -}}
- key: vnode.dev/provider
  operator: DoesNotExist
- key: type
  operator: NotIn
  values: [virtual-kubelet]
- key: kubernetes.io/os
  operator: In
  values: [linux]
{{- end }}
