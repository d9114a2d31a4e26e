{{/* What every pod of this chart has in common. */}}
{{- define "dotmac-license-proxy.podBasics" -}}
serviceAccountName: {{ include "dotmac-license-proxy.serviceAccountName" . }}
{{ include "dotmac-license-proxy.podRest" . }}
{{- end }}

{{/* The same without the account, for the hook that runs before the account is made. */}}
{{- define "dotmac-license-proxy.podRest" -}}
# Nothing here asks the API server.
automountServiceAccountToken: false
enableServiceLinks: false
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  {{- include "dotmac-license-proxy.podSecurityContext" . | nindent 2 }}
{{- with .Values.pod.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.pod.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.pod.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- end }}

{{/* Called with (list scope component): labels of a pod. */}}
{{- define "dotmac-license-proxy.podLabels" -}}
{{- $scope := index . 0 }}
{{- include "dotmac-license-proxy.labels" $scope }}
app.kubernetes.io/component: {{ index . 1 }}
{{- with $scope.Values.pod.labels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Called with (list scope args): the container of a job or of the relay, which ask the stores and serve nobody. */}}
{{- define "dotmac-license-proxy.commandContainer" -}}
{{- $scope := index . 0 -}}
name: license-proxy
image: {{ include "dotmac-license-proxy.image" $scope }}
imagePullPolicy: {{ $scope.Values.image.pullPolicy }}
args:
  {{- range index . 1 }}
  - {{ . | quote }}
  {{- end }}
securityContext:
  {{- toYaml $scope.Values.securityContext | nindent 2 }}
{{- end }}
