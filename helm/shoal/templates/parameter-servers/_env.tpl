{{/* The variables that the chart sets. POD_NAME and POD_NAMESPACE are there for the address. */}}
{{- define "shoal.parameterServers.env" -}}
{{ include "shoal.env.serving" (list "SHOAL_PS" 7080 7081) }}
- name: POD_NAMESPACE
  valueFrom:
    fieldRef:
      fieldPath: metadata.namespace
- name: SHOAL_PS_SERVER_ID
  valueFrom:
    fieldRef:
      fieldPath: metadata.name
- name: SHOAL_PS_ADVERTISE_HOST
  value: $(SHOAL_PS_SERVER_ID).{{ include "shoal.parameterServers.name" . }}.$(POD_NAMESPACE).svc
- name: SHOAL_PS_MASTER
  value: {{ include "shoal.master.address" . }}
- name: SHOAL_PS_DATA_DIR
  value: /var/lib/shoal
{{- end -}}
