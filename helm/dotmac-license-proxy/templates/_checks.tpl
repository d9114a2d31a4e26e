{{/* What would render and then not work, or open a way around the gate, is refused here with a sentence. */}}
{{- define "dotmac-license-proxy.checks" -}}
{{- $v := .Values }}
{{- $config := include "dotmac-license-proxy.userConfig" . | fromYaml }}

{{- /* The configuration. */}}
{{- if and $config $v.existingConfigMap }}
  {{- fail "config and existingConfigMap: give one of them" }}
{{- end }}
{{- if not (or $config $v.existingConfigMap) }}
  {{- fail "config is empty: give the gate's configuration there (tenant, licenses, routes, plans; see config/dotmac.yaml), or name a ConfigMap by existingConfigMap" }}
{{- end }}
{{- if hasKey $config "listen" }}
  {{- fail "config.listen is set by the chart, so that it can't disagree with ports and probes: use ports, bindAddress and sidecar.workers" }}
{{- end }}
{{- if hasKey ($config.upstream | default dict) "address" }}
  {{- fail "config.upstream.address is set by the chart, so that it can't disagree with the backend's mounts: use upstream.type, upstream.socketPath and upstream.port" }}
{{- end }}
{{- range $i, $file := $v.configFiles }}
  {{- if eq $file.path "config.yaml" }}
    {{- fail (printf "configFiles[%d].path: config.yaml is the configuration itself" $i) }}
  {{- end }}
{{- end }}

{{- /* Ports. */}}
{{- $ports := list (int $v.ports.proxy) (int $v.ports.ops) }}
{{- if $v.ports.admin }}{{- $ports = append $ports (int $v.ports.admin) }}{{- end }}
{{- if eq $v.upstream.type "loopback" }}{{- $ports = append $ports (int $v.upstream.port) }}{{- end }}
{{- if ne (len $ports) (len (uniq $ports)) }}
  {{- fail (printf "ports and upstream.port: two of %s are the same" (join ", " $ports)) }}
{{- end }}

{{- /* Nobody reaches the backend but through the gate. */}}
{{- if $v.backend.enabled }}
  {{- range $i, $port := $v.backend.ports }}
    {{- if has (int $port.containerPort) $ports }}
      {{- fail (printf "backend.ports[%d]: %d is the gate's or the port on which the backend is asked by the gate: it is not to be reached by anybody else" $i (int $port.containerPort)) }}
    {{- end }}
  {{- end }}
  {{- with include "dotmac-license-proxy.wildcardBind" . }}
    {{- if not $v.backend.allowWildcardBind }}
      {{- fail (printf "backend: %q makes it listen on every address of the pod, which is a way around the gate: %s, or say backend.allowWildcardBind: true" . (include "dotmac-license-proxy.bindAdvice" $)) }}
    {{- end }}
  {{- end }}
  {{- include "dotmac-license-proxy.checkHealthPath" . }}
{{- end }}
{{- range $i, $rule := $v.networkPolicy.extraIngress }}
  {{- if not $rule.ports }}
    {{- fail (printf "networkPolicy.extraIngress[%d] has no ports: it would open every port of the pod" $i) }}
  {{- end }}
  {{- range $rule.ports }}
    {{- if and (eq $v.upstream.type "loopback") (eq (.port | toString) ($v.upstream.port | int | toString)) }}
      {{- fail (printf "networkPolicy.extraIngress[%d]: %v is the backend's port, which only the gate may reach" $i .port) }}
    {{- end }}
  {{- end }}
{{- end }}

{{- /* Whose pods they are. */}}
{{- if not (include "dotmac-license-proxy.hasPods" .) }}
  {{- $alone := not $v.relay.enabled }}
  {{- $unselected := list }}
  {{- range $name, $on := dict "service" $v.service.enabled "networkPolicy" (and $alone $v.networkPolicy.enabled) "podDisruptionBudget" $v.podDisruptionBudget.enabled "monitoring.monitor" (and $alone (ne $v.monitoring.monitor "none")) "helmTest" $v.helmTest.enabled }}
    {{- if $on }}{{- $unselected = append $unselected $name }}{{- end }}
  {{- end }}
  {{- with $unselected }}
    {{- fail (printf "workload.selector is empty and backend.enabled is false: name the labels of the pods that carry the gate, or switch off what selects pods: %s" (join ", " (sortAlpha .))) }}
  {{- end }}
{{- end }}
{{- if $v.autoscaling.enabled }}
  {{- if not $v.backend.enabled }}
    {{- fail "autoscaling scales this chart's own Deployment: it needs backend.enabled" }}
  {{- end }}
  {{- if gt (int $v.autoscaling.minReplicas) (int $v.autoscaling.maxReplicas) }}
    {{- fail (printf "autoscaling.minReplicas is %d, more than maxReplicas, %d" (int $v.autoscaling.minReplicas) (int $v.autoscaling.maxReplicas)) }}
  {{- end }}
  {{- if not (dig "requests" "cpu" "" $v.backend.resources) }}
    {{- fail "autoscaling measures the backend's CPU by what it requests: set backend.resources.requests.cpu" }}
  {{- end }}
{{- end }}
{{- if and $v.helmTest.enabled (not $v.service.enabled) }}
  {{- fail "helmTest asks through the Service: set service.enabled, or helmTest.enabled: false" }}
{{- end }}
{{- if and (eq $v.sidecar.native "always") (semverCompare "<1.29.0-0" .Capabilities.KubeVersion.Version) }}
  {{- fail (printf "sidecar.native is always, but Kubernetes %s does not have native sidecars by default (1.29 does): use auto or never" .Capabilities.KubeVersion.Version) }}
{{- end }}

{{- /* How pods end. */}}
{{- if not (kindIs "invalid" $v.shutdown.preStopSeconds) }}
  {{- $gate := include "dotmac-license-proxy.gateSeconds" . | int }}
  {{- if and (not (include "dotmac-license-proxy.isNative" .)) (le (int $v.shutdown.preStopSeconds) $gate) }}
    {{- fail (printf "shutdown.preStopSeconds is %d, but the gate may go on for %d s after SIGTERM (config.shutdown.timeout) and needs the backend for so long" (int $v.shutdown.preStopSeconds) $gate) }}
  {{- end }}
{{- end }}

{{- /* Stores and who needs them. */}}
{{- $postgres := include "dotmac-license-proxy.usesPostgres" . }}
{{- range $job, $on := dict "migration" $v.migration.enabled "renew" $v.renew.enabled "prune" $v.prune.enabled "relay" $v.relay.enabled }}
  {{- if $on }}
    {{- if not $postgres }}
      {{- fail (printf "%s.enabled: config.licenses.source is a file, there is no database: set %s.enabled: false" $job $job) }}
    {{- end }}
    {{- if and (ne $job "migration") (not $v.secrets.databaseUrl.secretName) }}
      {{- fail (printf "%s.enabled needs the primary: name its Secret by secrets.databaseUrl.secretName" $job) }}
    {{- end }}
  {{- end }}
{{- end }}
{{- if and $v.migration.enabled (not (or $v.migration.databaseUrl.secretName $v.secrets.databaseUrl.secretName)) }}
  {{- fail "migration.enabled needs the primary: name its Secret by secrets.databaseUrl.secretName, or by migration.databaseUrl.secretName for a role that may change tables; or set migration.enabled: false" }}
{{- end }}
{{- $feed := dig "licenses" "change_feed" "listen" $config }}
{{- if $v.relay.enabled }}
  {{- if and $config (ne $feed "redis") }}
    {{- fail (printf "relay.enabled, but config.licenses.change_feed is %s: nobody would hear the relay; set it to redis" $feed) }}
  {{- end }}
  {{- if not $v.secrets.redisUrl.secretName }}
    {{- fail "relay.enabled needs Redis, by way of which it tells of changes: name its Secret by secrets.redisUrl.secretName" }}
  {{- end }}
{{- else if and (eq $feed "redis") (not $v.relay.elsewhere) }}
  {{- fail "config.licenses.change_feed is redis, but no relay would tell of changes: set relay.enabled, or relay.elsewhere: true where another release runs one" }}
{{- end }}
{{- end }}

{{/* The word of the backend's command line or environment by which it would listen on every address, if there is one. */}}
{{- define "dotmac-license-proxy.wildcardBind" -}}
{{- $words := concat .Values.backend.command .Values.backend.args }}
{{- range .Values.backend.env }}
  {{- if kindIs "string" .value }}{{- $words = append $words .value }}{{- end }}
{{- end }}
{{- $found := list }}
{{- range $words }}
  {{- if regexMatch "(^|[^0-9.])0\\.0\\.0\\.0($|[^0-9.])|\\[::\\]|(^|[= ])::($|[ :])|^(--bind=|-b)?:[0-9]+$" . }}
    {{- $found = append $found . }}
  {{- end }}
{{- end }}
{{- with $found }}{{ first . }}{{ end }}
{{- end }}

{{- define "dotmac-license-proxy.bindAdvice" -}}
{{- if eq .Values.upstream.type "socket" -}}
let it listen on the Unix socket {{ .Values.upstream.socketPath }}
{{- else -}}
let it listen on 127.0.0.1:{{ int .Values.upstream.port }}
{{- end }}
{{- end }}

{{/* The kubelet names no tenant, so that the path it asks for must be nobody's to buy. */}}
{{- define "dotmac-license-proxy.checkHealthPath" -}}
{{- $path := .Values.backend.healthPath }}
{{- if and $path .Values.config }}
  {{- $length := -1 }}
  {{- $access := dig "routes" "unmatched" "allow" (include "dotmac-license-proxy.userConfig" . | fromYaml) }}
  {{- range dig "routes" "rules" list (include "dotmac-license-proxy.userConfig" . | fromYaml) }}
    {{- $match := .match | default dict }}
    {{- $prefix := .prefix | default $match.prefix | default "" | trimSuffix "/" }}
    {{- $methods := $match.methods | default (list "GET") }}
    {{- $covers := or (and $match.path (eq $match.path $path)) (and (or .prefix $match.prefix) (or (eq $prefix $path) (hasPrefix (printf "%s/" $prefix) $path))) }}
    {{- $here := ternary 100000 (len $prefix) (not (empty $match.path)) }}
    {{- if and $covers (has "GET" $methods) (gt $here $length) }}
      {{- $length = $here }}
      {{- $access = .access | default "a feature" }}
    {{- end }}
  {{- end }}
  {{- if not (has $access (list "always" "allow")) }}
    {{- fail (printf "backend.healthPath: the kubelet asks for %s through the gate and names no tenant, but the routes say %q for it: add the rule { match: { path: %s }, access: always }" $path $access $path) }}
  {{- end }}
{{- end }}
{{- end }}
