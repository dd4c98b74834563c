{{- define "pyproxy.account" -}}
{{- .Values.serviceAccount.name | default .Release.Name -}}
{{- end }}

{{/* The port at the end of an address, or the default if the address has none. */}}
{{- define "pyproxy.port" -}}
{{- $found := regexFind ":[0-9]+$" (.address | default "") | trimPrefix ":" -}}
{{- $found | default .default -}}
{{- end }}

{{- define "pyproxy.metricsPort" -}}
{{- include "pyproxy.port" (dict "address" .Values.config.metricsBindAddress "default" "10249") -}}
{{- end }}
