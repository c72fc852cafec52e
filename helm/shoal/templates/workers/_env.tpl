{{/* The variables that the chart sets (list root pool). */}}
{{- define "shoal.pool.env" -}}
{{- $root := index . 0 -}}
{{- $pool := index . 1 -}}
{{ include "shoal.env.serving" (list "SHOAL_WORKER" 7090 7091) }}
- name: SHOAL_WORKER_WORKER_ID
  valueFrom:
    fieldRef:
      fieldPath: metadata.name
- name: SHOAL_WORKER_ADVERTISE_HOST
  valueFrom:
    fieldRef:
      fieldPath: status.podIP
- name: SHOAL_WORKER_MASTER
  value: {{ include "shoal.master.address" $root }}
{{- with $pool.supportedModels }}
- name: SHOAL_WORKER_SUPPORTED_MODELS
  value: {{ join "," . | quote }}
{{- end }}
- name: SHOAL_WORKER_MAX_CONCURRENT_JOBS
  value: {{ $pool.maxConcurrentJobs | quote }}
- name: SHOAL_WORKER_WARM_TRAINERS
  value: {{ $pool.warmTrainers | quote }}
- name: SHOAL_WORKER_LEAVE_SECONDS
  value: {{ div $pool.terminationGracePeriodSeconds 3 | quote }}
- name: SHOAL_WORKER_DATA_ROOTS
  value: {{ include "shoal.dataRoots" $root | quote }}
{{- end -}}
