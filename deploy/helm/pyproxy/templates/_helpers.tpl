{{- define "pyproxy.account" -}}
{{- .Values.serviceAccount.name | default .Release.Name -}}
{{- end }}

{{/*
Where the agent listens, as JSON with host and port, or {} if it does not.

The argument is a list: the root, and the field of config. Defaults are the agent's. The agent reads
config from a file, and a field's flag has no effect beside a file.
*/}}
{{- define "pyproxy.listen" -}}
{{- $config := (index . 0).Values.config -}}
{{- $ipv6 := contains ":" ($config.bindAddress | default "") -}}
{{- $defaults := dict
    "healthzBindAddress" (list (ternary "::" "0.0.0.0" $ipv6) "10256")
    "metricsBindAddress" (list (ternary "::1" "127.0.0.1" $ipv6) "10249") -}}
{{- $default := get $defaults (index . 1) -}}
{{- $address := get $config (index . 1) | default "" -}}
{{- $port := regexFind "^(\\[.*\\]|[^:]*):[0-9]+$" $address | regexFind ":[0-9]+$" -}}
{{- $host := $address | trimSuffix $port | trimAll "[]" | default (first $default) -}}
{{- if eq $address "0" -}}
{}
{{- else -}}
{{- dict "host" $host "port" ($port | trimPrefix ":" | default (last $default) | int) | toJson -}}
{{- end -}}
{{- end }}

{{/* Whether only programs on the node reach a host: a text, empty for false. */}}
{{- define "pyproxy.isLoopback" -}}
{{- if regexMatch "^(::ffff:)?127\\.|^(0*:){2,7}0*1$" . }}true{{ end -}}
{{- end }}

{{/* An httpGet of /healthz's server; the kubelet's default is the node's address. */}}
{{- define "pyproxy.probe" -}}
{{- $listen := include "pyproxy.listen" (list (index . 0) "healthzBindAddress") | fromJson -}}
httpGet:
  path: {{ index . 1 }}
  port: healthz
  {{- if include "pyproxy.isLoopback" $listen.host }}
  host: {{ $listen.host | quote }}
  {{- end }}
{{- end }}

{{/* Refuse values that would have no effect, or make objects that cannot work. */}}
{{- define "pyproxy.check" -}}
{{- $fields := dict
    "healthz-bind-address" "healthzBindAddress" "healthz-port" "healthzBindAddress"
    "metrics-bind-address" "metricsBindAddress" "metrics-port" "metricsBindAddress" -}}
{{- range .Values.extraArgs -}}
{{- $flag := regexFind "^--?[a-z-]+" . | trimAll "-" -}}
{{- with get $fields $flag -}}
{{- fail (printf "extraArgs: --%s has no effect, because the agent reads config: set config.%s" $flag .) -}}
{{- end -}}
{{- if eq $flag "config" -}}
{{- fail "extraArgs: --config is the chart's own: set config" -}}
{{- end -}}
{{- end -}}
{{- $monitors := list -}}
{{- if .Values.serviceMonitor.enabled }}{{ $monitors = append $monitors "serviceMonitor" }}{{ end -}}
{{- if .Values.podMonitor.enabled }}{{ $monitors = append $monitors "podMonitor" }}{{ end -}}
{{- if gt (len $monitors) 1 -}}
{{- fail "serviceMonitor, podMonitor: each scrapes every node: enable one of them" -}}
{{- end -}}
{{- $listen := include "pyproxy.listen" (list . "metricsBindAddress") | fromJson -}}
{{- range $monitors -}}
{{- if not $listen -}}
{{- fail (printf "%s: config.metricsBindAddress 0 turns /metrics off; set it to 0.0.0.0:10249" .) -}}
{{- else if include "pyproxy.isLoopback" $listen.host -}}
{{- $all := ternary "[::]" "0.0.0.0" (contains ":" $listen.host) -}}
{{- fail (printf "%s: Prometheus cannot reach config.metricsBindAddress %s; set it to %s:%v" . $listen.host $all $listen.port) -}}
{{- end -}}
{{- end -}}
{{- with .Values.updateStrategy -}}
{{- if eq .type "RollingUpdate" -}}
{{- $zero := list "0" "0%" -}}
{{- if eq (has (toString .rollingUpdate.maxSurge) $zero) (has (toString .rollingUpdate.maxUnavailable) $zero) -}}
{{- fail "updateStrategy.rollingUpdate: set one of maxSurge and maxUnavailable, and the other to 0" -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end }}
