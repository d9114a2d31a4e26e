{{/*
`config` without its nulls: `--set config.upgrade=null` takes a key of an earlier file out, as it does for the chart's own values.
*/}}
{{- define "dotmac-license-proxy.userConfig" -}}
{{- $config := deepCopy (.Values.config | default dict) }}
{{- include "dotmac-license-proxy.dropNulls" $config }}
{{- toYaml $config }}
{{- end }}

{{- define "dotmac-license-proxy.dropNulls" -}}
{{- $here := . }}
{{- if kindIs "map" $here }}
{{- range $key, $value := $here }}
{{- if kindIs "invalid" $value }}{{- $_ := unset $here $key }}{{- else }}{{- include "dotmac-license-proxy.dropNulls" $value }}{{- end }}
{{- end }}
{{- else if kindIs "slice" $here }}
{{- range $here }}{{- include "dotmac-license-proxy.dropNulls" . }}{{- end }}
{{- end }}
{{- end }}

{{/*
The gate's configuration: what `config` says, with listeners and upstream as the ports, probes and mounts have them, so that the
two cannot disagree.
*/}}
{{- define "dotmac-license-proxy.config" -}}
{{- $config := include "dotmac-license-proxy.userConfig" . | fromYaml }}
{{- $bind := .Values.bindAddress }}
{{- $listen := dict "proxy" (printf "%s:%d" $bind (int .Values.ports.proxy)) "ops" (printf "%s:%d" $bind (int .Values.ports.ops)) }}
{{- if .Values.ports.admin }}
{{- $_ := set $listen "admin" (printf "127.0.0.1:%d" (int .Values.ports.admin)) }}
{{- end }}
{{- if .Values.sidecar.workers }}
{{- $_ := set $listen "workers" (int .Values.sidecar.workers) }}
{{- end }}
{{- $upstream := set (deepCopy ($config.upstream | default dict)) "address" (include "dotmac-license-proxy.upstreamAddress" .) }}
{{- $_ := set $config "listen" $listen }}
{{- $_ := set $config "upstream" $upstream }}
{{- if not (hasKey $config "version") }}
{{- $_ := set $config "version" 1 }}
{{- end }}
{{- toYaml $config }}
{{- end }}

{{- define "dotmac-license-proxy.upstreamAddress" -}}
{{- if eq .Values.upstream.type "socket" -}}
unix:{{ .Values.upstream.socketPath }}
{{- else -}}
127.0.0.1:{{ int .Values.upstream.port }}
{{- end }}
{{- end }}

{{/* Whether licences are in Postgres; where the configuration is somebody else's, they are thought to be. */}}
{{- define "dotmac-license-proxy.usesPostgres" -}}
{{- if or .Values.existingConfigMap (not (dig "licenses" "source" "file" dict (include "dotmac-license-proxy.userConfig" . | fromYaml))) }}true{{ end }}
{{- end }}

{{/* A duration of the configuration, `250ms`, `5s`, `5m`, in whole seconds, rounded up. */}}
{{- define "dotmac-license-proxy.seconds" -}}
{{- $number := regexFind "^[0-9]+" . | atoi }}
{{- $unit := regexFind "[a-z]+$" . }}
{{- if eq $unit "ms" }}{{ div (add $number 999) 1000 }}
{{- else }}{{ mul $number (get (dict "s" 1 "m" 60 "h" 3600 "d" 86400) $unit | int) }}
{{- end }}
{{- end }}

{{/* When the gate ends at the latest after SIGTERM, in seconds; the program's own default is 20 s. */}}
{{- define "dotmac-license-proxy.gateSeconds" -}}
{{- include "dotmac-license-proxy.seconds" (dig "shutdown" "timeout" "20s" (include "dotmac-license-proxy.userConfig" . | fromYaml)) }}
{{- end }}

{{/*
The few keys that the gate does not read again while it runs. Their checksum is an annotation of the pod, so that changing one of
them rolls the pods, and changing anything else (rules, plans, enforcement) rolls none.
*/}}
{{- define "dotmac-license-proxy.restartChecksum" -}}
{{- $config := include "dotmac-license-proxy.config" . | fromYaml }}
{{- $keys := pick $config "listen" "shutdown" "usage" }}
{{- $_ := set $keys "log" (pick ($config.log | default dict) "level" "access") }}
{{- $_ := set $keys "upstream" (pick $config.upstream "pool_size" "retries") }}
{{- $_ := set $keys "licenses" (omit ($config.licenses | default dict) "grace" "on_failure") }}
{{- $keys | toJson | sha256sum }}
{{- end }}
