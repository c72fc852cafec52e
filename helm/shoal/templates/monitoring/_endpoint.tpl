{{/* One endpoint of a PodMonitor or ServiceMonitor: its values are the same. */}}
{{- define "shoal.endpoint" -}}
- port: http
  path: /metrics
  {{- with .interval }}
  interval: {{ . }}
  {{- end }}
  {{- with .scrapeTimeout }}
  scrapeTimeout: {{ . }}
  {{- end }}
  {{- with .relabelings }}
  relabelings:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .metricRelabelings }}
  metricRelabelings:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end -}}

{{/* Labels of the pods that become labels of their metrics. */}}
{{- define "shoal.podTargetLabels" -}}
podTargetLabels: [app.kubernetes.io/instance, app.kubernetes.io/component, shoal/pool]
{{- end -}}
