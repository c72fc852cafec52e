{{/* Rules of NetworkPolicies. */}}

{{/* Pods of a role, as a peer (list root component). */}}
{{- define "shoal.peer" -}}
- podSelector:
    matchLabels:
      {{- include "shoal.selectorLabels" (dict "root" (index . 0) "component" (index . 1)) | nindent 6 }}
{{- end -}}

{{/* Ingress of the metrics' port (list root port). */}}
{{- define "shoal.ingress.metrics" -}}
{{- with (index . 0).Values.networkPolicy.metrics }}
- from:
    {{- toYaml . | nindent 4 }}
  ports:
    - {port: {{ index $ 1 }}, protocol: TCP}
{{- end }}
{{- end -}}

{{/* Egress to a role (list root component port). */}}
{{- define "shoal.egress.to" -}}
- to:
    {{- include "shoal.peer" . | nindent 4 }}
  ports:
    - {port: {{ index . 2 }}, protocol: TCP}
{{- end -}}

{{/* Egress to ports (dict ports, protocols, to); with no `to`: anywhere. */}}
{{- define "shoal.egress.ports" -}}
- ports:
    {{- range $port := .ports }}
    {{- range $.protocols }}
    - {port: {{ $port }}, protocol: {{ . }}}
    {{- end }}
    {{- end }}
  {{- with .to }}
  to:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end -}}
