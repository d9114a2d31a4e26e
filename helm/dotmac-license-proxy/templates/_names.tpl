{{/*
Names and labels. A parent chart that has this one as a dependency passes this chart's own scope:
  {{- $proxy := index .Subcharts "dotmac-license-proxy" }}
  {{- include "dotmac-license-proxy.labels" $proxy }}
*/}}

{{- define "dotmac-license-proxy.name" -}}
{{- .Values.nameOverride | default .Chart.Name | trunc 52 | trimSuffix "-" }}
{{- end }}

{{/* At most 52 characters: a CronJob's name may have no more, and nine of them are left for what is appended. */}}
{{- define "dotmac-license-proxy.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 43 | trimSuffix "-" }}
{{- else }}
{{- $name := include "dotmac-license-proxy.name" . }}
{{- if contains $name .Release.Name }}
{{- .Release.Name | trunc 43 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 43 | trimSuffix "-" }}
{{- end }}
{{- end }}
{{- end }}

{{- define "dotmac-license-proxy.selectorLabels" -}}
app.kubernetes.io/name: {{ include "dotmac-license-proxy.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "dotmac-license-proxy.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name (.Chart.Version | replace "+" "_") | trunc 63 | trimSuffix "-" }}
{{ include "dotmac-license-proxy.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Whether there are pods with the gate that this release knows of; one that only runs a relay has none. */}}
{{- define "dotmac-license-proxy.hasPods" -}}
{{- if or .Values.backend.enabled .Values.workload.selector }}true{{ end }}
{{- end }}

{{/* The labels of the pods that carry the gate: this chart's own, or those of somebody else's Deployment. */}}
{{- define "dotmac-license-proxy.workloadSelector" -}}
{{- if .Values.backend.enabled -}}
{{ include "dotmac-license-proxy.selectorLabels" . }}
app.kubernetes.io/component: backend
{{- else -}}
{{ toYaml .Values.workload.selector }}
{{- end }}
{{- end }}

{{- define "dotmac-license-proxy.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- .Values.serviceAccount.name | default (include "dotmac-license-proxy.fullname" .) }}
{{- else }}
{{- .Values.serviceAccount.name | default "default" }}
{{- end }}
{{- end }}

{{- define "dotmac-license-proxy.configMapName" -}}
{{- .Values.existingConfigMap | default (printf "%s-config" (include "dotmac-license-proxy.fullname" .)) }}
{{- end }}

{{/* Of an image's values: repository[:tag][@digest]. Called with (list image tag-if-none-is-given). */}}
{{- define "dotmac-license-proxy.imageName" -}}
{{- $image := index . 0 }}
{{- $tag := $image.tag | default (index . 1) }}
{{- $image.repository }}{{ with $tag }}:{{ . }}{{ end }}{{ with $image.digest }}@{{ . }}{{ end }}
{{- end }}

{{- define "dotmac-license-proxy.image" -}}
{{- include "dotmac-license-proxy.imageName" (list .Values.image .Chart.AppVersion) }}
{{- end }}
