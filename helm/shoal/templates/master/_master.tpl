{{/* "true" where the jobs are in a database and not in a SQLite file. */}}
{{- define "shoal.store.external" -}}
{{- with .Values.master.store -}}
{{- if or .url .existingSecret.name }}true{{ end -}}
{{- end -}}
{{- end -}}

{{/* The variables that the chart sets. */}}
{{- define "shoal.master.env" -}}
{{- $store := .Values.master.store -}}
{{ include "shoal.env.serving" (list "SHOAL_MASTER" 7070 7071) }}
{{- if include "shoal.store.external" . }}
- name: SHOAL_MASTER_STORE
  valueFrom:
    secretKeyRef:
      name: {{ default (include "shoal.named" (list . "store")) $store.existingSecret.name | quote }}
      key: {{ ternary $store.existingSecret.key "url" (not (empty $store.existingSecret.name)) | quote }}
{{- end }}
- name: SHOAL_MASTER_DATA_DIR
  value: /var/lib/shoal
{{- if .Values.master.watchPods.enabled }}
- name: SHOAL_MASTER_KUBERNETES_NAMESPACE
  valueFrom:
    fieldRef:
      fieldPath: metadata.namespace
- name: SHOAL_MASTER_KUBERNETES_SELECTOR
  value: {{ printf "app.kubernetes.io/name=%s,app.kubernetes.io/instance=%s,app.kubernetes.io/part-of=shoal" (include "shoal.name" .) .Release.Name }}
{{- end }}
{{- end -}}
