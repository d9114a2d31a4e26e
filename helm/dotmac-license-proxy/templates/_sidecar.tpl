{{/*
The gate as a container, for a pod that is not this chart's: see README.md, "In your own Deployment". All of them take this chart's
own scope, which in a parent chart is (index .Subcharts "dotmac-license-proxy").

  .initContainers   the gate as a list item, where it runs in the native form; else nothing
  .containers       the same, where it runs in the plain form
  .sidecar          the container itself, without the dash
  .volumes          the volumes that it mounts, and the backend's socket
  .backendVolumeMounts, .backendLifecycle    for the backend's container
  .podSecurityContext, .podAnnotations, .terminationGracePeriodSeconds    for the pod
*/}}

{{/* "true" for the native form: an init container that keeps running, which Kubernetes has by default from 1.29 on. */}}
{{- define "dotmac-license-proxy.isNative" -}}
{{- if eq .Values.sidecar.native "auto" }}
{{- if semverCompare ">=1.29.0-0" .Capabilities.KubeVersion.Version }}true{{ end }}
{{- else if eq .Values.sidecar.native "always" }}true{{ end }}
{{- end }}

{{- define "dotmac-license-proxy.initContainers" -}}
{{- if include "dotmac-license-proxy.isNative" . -}}
- {{ include "dotmac-license-proxy.sidecar" . | nindent 2 | trim }}
{{- end }}
{{- end }}

{{- define "dotmac-license-proxy.containers" -}}
{{- if not (include "dotmac-license-proxy.isNative" .) -}}
- {{ include "dotmac-license-proxy.sidecar" . | nindent 2 | trim }}
{{- end }}
{{- end }}

{{- define "dotmac-license-proxy.sidecar" -}}
name: license-proxy
image: {{ include "dotmac-license-proxy.image" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
args: [serve]
{{- if include "dotmac-license-proxy.isNative" . }}
restartPolicy: Always
{{- end }}
env:
  {{- include "dotmac-license-proxy.environment" (list . .Values.secrets) | nindent 2 }}
ports:
  - name: http
    containerPort: {{ int .Values.ports.proxy }}
    protocol: TCP
  - name: ops
    containerPort: {{ int .Values.ports.ops }}
    protocol: TCP
{{- /* Starting asks no store. In the native form the backend starts once this passes. */}}
startupProbe:
  httpGet:
    path: /livez
    port: {{ int .Values.ports.ops }}
  {{- toYaml .Values.sidecar.startupProbe | nindent 2 }}
{{- /* Ready once some store has answered, and for good: a store that fails later takes no pod out of service. */}}
readinessProbe:
  httpGet:
    path: /readyz
    port: {{ int .Values.ports.ops }}
  {{- toYaml .Values.sidecar.readinessProbe | nindent 2 }}
livenessProbe:
  httpGet:
    path: /livez
    port: {{ int .Values.ports.ops }}
  {{- toYaml .Values.sidecar.livenessProbe | nindent 2 }}
resources:
  {{- toYaml .Values.sidecar.resources | nindent 2 }}
securityContext:
  {{- toYaml .Values.securityContext | nindent 2 }}
volumeMounts:
  {{- include "dotmac-license-proxy.ownVolumeMounts" (list . .Values.secrets) | nindent 2 }}
  {{- if eq .Values.upstream.type "socket" }}
  {{- /* Connecting needs no right to write to the folder: the gate can't put another socket in the backend's place. */}}
  - name: license-proxy-backend
    mountPath: {{ dir .Values.upstream.socketPath }}
    readOnly: true
  {{- end }}
  {{- with .Values.sidecar.extraVolumeMounts }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}

{{/* Called with (list scope secrets): configuration and secrets, for `serve`, `relay` and the jobs. */}}
{{- define "dotmac-license-proxy.environment" -}}
{{- $scope := index . 0 -}}
- name: DOTMAC_LICENSE_CONFIG
  value: /etc/dotmac-license-proxy/config.yaml
{{- include "dotmac-license-proxy.secretEnvironment" . }}
{{- with $scope.Values.sidecar.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* The program's names for the secrets, by the names that `secrets` has for them. */}}
{{- define "dotmac-license-proxy.secretNames" -}}
databaseUrl: DATABASE_URL
licenseDbUrl: LICENSE_DB_URL
redisUrl: REDIS_URL
adminToken: ADMIN_TOKEN
{{- end }}

{{/* Called with (list scope secrets): a variable with the secret, or one that names its file, for each that is named. */}}
{{- define "dotmac-license-proxy.secretEnvironment" -}}
{{- $scope := index . 0 }}
{{- $secrets := index . 1 }}
{{- range $key, $name := include "dotmac-license-proxy.secretNames" . | fromYaml }}
{{- $secret := get $secrets $key | default dict }}
{{- if $secret.secretName }}
{{- if eq $scope.Values.secrets.form "files" }}
- name: DOTMAC_LICENSE_{{ $name }}_FILE
  value: /run/secrets/dotmac-license-proxy/{{ $name }}
{{- else }}
- name: DOTMAC_LICENSE_{{ $name }}
  valueFrom:
    secretKeyRef:
      name: {{ $secret.secretName }}
      key: {{ $secret.key }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/* Called with (list scope secrets): the volume with the secrets as files, which rotate without a restart. */}}
{{- define "dotmac-license-proxy.secretVolume" -}}
{{- $scope := index . 0 }}
{{- $secrets := index . 1 }}
{{- $sources := list }}
{{- if eq $scope.Values.secrets.form "files" }}
{{- range $key, $name := include "dotmac-license-proxy.secretNames" . | fromYaml }}
{{- $secret := get $secrets $key | default dict }}
{{- if $secret.secretName }}
{{- $items := list (dict "key" $secret.key "path" $name) }}
{{- $sources = append $sources (dict "secret" (dict "name" $secret.secretName "items" $items)) }}
{{- end }}
{{- end }}
{{- end }}
{{- with $sources }}
- name: license-proxy-secrets
  projected:
    {{- /* Readable by everyone in the containers that mount it: the gate's alone. So it works without an fsGroup. */}}
    defaultMode: 0444
    sources:
      {{- toYaml . | nindent 6 }}
{{- end }}
{{- end }}

{{/*
Called with (list scope secrets), as the one below. A folder and no subPath: a file that is mounted by subPath never changes, and the
gate could not reload it.
*/}}
{{- define "dotmac-license-proxy.ownVolumeMounts" -}}
- name: license-proxy-config
  mountPath: /etc/dotmac-license-proxy
  readOnly: true
{{- if include "dotmac-license-proxy.secretVolume" . }}
- name: license-proxy-secrets
  mountPath: /run/secrets/dotmac-license-proxy
  readOnly: true
{{- end }}
{{- end }}

{{- define "dotmac-license-proxy.ownVolumes" -}}
{{- $scope := index . 0 -}}
- name: license-proxy-config
  projected:
    defaultMode: 0444
    sources:
      - configMap:
          name: {{ include "dotmac-license-proxy.configMapName" $scope }}
          items:
            - key: config.yaml
              path: config.yaml
      {{- range $scope.Values.configFiles }}
      {{- $items := list (dict "key" .key "path" .path) }}
      {{- if .secret }}
      - secret:
          name: {{ .secret }}
          items:
            {{- toYaml $items | nindent 12 }}
      {{- else }}
      - configMap:
          name: {{ .configMap }}
          items:
            {{- toYaml $items | nindent 12 }}
      {{- end }}
      {{- end }}
{{- include "dotmac-license-proxy.secretVolume" . }}
{{- end }}

{{- define "dotmac-license-proxy.volumes" -}}
{{ include "dotmac-license-proxy.ownVolumes" (list . .Values.secrets) }}
{{- if eq .Values.upstream.type "socket" }}
- name: license-proxy-backend
  emptyDir:
    sizeLimit: 16Mi
{{- end }}
{{- end }}

{{/* The folder in which the backend makes its socket. Nobody else mounts it, so nobody else can open the socket. */}}
{{- define "dotmac-license-proxy.backendVolumeMounts" -}}
{{- if eq .Values.upstream.type "socket" -}}
- name: license-proxy-backend
  mountPath: {{ dir .Values.upstream.socketPath }}
{{- end }}
{{- end }}

{{/*
How a pod ends without losing a request. The backend must outlive whatever the gate still sends to it.

Native form: the kubelet sends SIGTERM to the backend, and to the gate only when the backend has gone. From the first moment the
pod is taken out of the Service, but load balancers notice late: so the backend waits before its SIGTERM, and both serve as ever.
Then the backend finishes what it has in hand, through a gate that is still there, and the gate has nothing left to wait for.

Plain form: both get SIGTERM at once. The gate stops being ready, accepts for `shutdown.drain` (load balancers notice), finishes
what is in flight and ends after `shutdown.timeout` at the latest. So the backend waits for longer than that.

`shutdown.backendSeconds` is what the backend may take after its own SIGTERM.
*/}}
{{- define "dotmac-license-proxy.preStopSeconds" -}}
{{- if kindIs "invalid" .Values.shutdown.preStopSeconds }}
{{- if include "dotmac-license-proxy.isNative" . }}10{{ else }}{{ add (include "dotmac-license-proxy.gateSeconds" .) 1 }}{{ end }}
{{- else }}
{{- int .Values.shutdown.preStopSeconds }}
{{- end }}
{{- end }}

{{/* The kubelet itself sleeps from 1.30 on; before that the backend's image needs `sleep`. */}}
{{- define "dotmac-license-proxy.backendLifecycle" -}}
preStop:
  {{- if semverCompare ">=1.30.0-0" .Capabilities.KubeVersion.Version }}
  sleep:
    seconds: {{ include "dotmac-license-proxy.preStopSeconds" . }}
  {{- else }}
  exec:
    command: [sleep, {{ include "dotmac-license-proxy.preStopSeconds" . | quote }}]
  {{- end }}
{{- end }}

{{/* The waiting, the backend's own end, and where it comes after that (native), the gate's; and a moment to spare. */}}
{{- define "dotmac-license-proxy.terminationGracePeriodSeconds" -}}
{{- $gate := ternary (include "dotmac-license-proxy.gateSeconds" . | int) 0 (eq (include "dotmac-license-proxy.isNative" .) "true") }}
{{- add (include "dotmac-license-proxy.preStopSeconds" .) .Values.shutdown.backendSeconds $gate 5 }}
{{- end }}

{{- define "dotmac-license-proxy.podSecurityContext" -}}
{{ toYaml .Values.podSecurityContext }}
{{- end }}

{{- define "dotmac-license-proxy.podAnnotations" -}}
{{- if not .Values.existingConfigMap -}}
checksum/restart-keys: {{ include "dotmac-license-proxy.restartChecksum" . }}
{{- end }}
{{- end }}
