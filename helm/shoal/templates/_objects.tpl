{{/* Whole objects that several roles have. */}}

{{/* (dict root, component, account, name) */}}
{{- define "shoal.serviceAccount" -}}
{{- if .account.create }}
apiVersion: v1
kind: ServiceAccount
metadata:
  name: {{ include "shoal.serviceAccountName" (list .account .name) | quote }}
  {{- include "shoal.metadata" (dict "root" .root "component" .component "annotations" .account.annotations) | nindent 2 }}
automountServiceAccountToken: false
{{- end }}
{{- end -}}

{{/* (dict root, component, pool, budget, name) */}}
{{- define "shoal.podDisruptionBudget" -}}
{{- if .budget.enabled }}
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: {{ .name }}
  {{- include "shoal.metadata" . | nindent 2 }}
spec:
  {{- if ne (toString .budget.minAvailable) "" }}
  minAvailable: {{ .budget.minAvailable }}
  {{- else }}
  maxUnavailable: {{ .budget.maxUnavailable }}
  {{- end }}
  unhealthyPodEvictionPolicy: {{ .budget.unhealthyPodEvictionPolicy }}
  selector:
    matchLabels:
      {{- include "shoal.selectorLabels" . | nindent 6 }}
{{- end }}
{{- end -}}

{{/* The headless Service that gives the pods of StatefulSets their names (dict root, component, name, annotations). */}}
{{- define "shoal.headlessService" -}}
apiVersion: v1
kind: Service
metadata:
  name: {{ .name }}
  {{- include "shoal.metadata" . | nindent 2 }}
spec:
  clusterIP: None
  publishNotReadyAddresses: true
  selector:
    {{- include "shoal.selectorLabels" . | nindent 4 }}
  ports:
    - name: grpc
      port: {{ .grpc }}
      targetPort: grpc
    - name: http
      port: {{ .http }}
      targetPort: http
{{- end -}}

{{/* A NetworkPolicy for the pods of a role, or of the release (dict root, component, name, ingress, egress as YAML). */}}
{{- define "shoal.networkPolicy" -}}
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: {{ include "shoal.named" (list .root .name) }}
  {{- include "shoal.metadata" . | nindent 2 }}
spec:
  podSelector:
    matchLabels:
      {{- include "shoal.selectorLabels" . | nindent 6 }}
  policyTypes: [Ingress, Egress]
  {{- with .ingress }}
  ingress:
    {{- . | nindent 4 }}
  {{- end }}
  {{- with .egress }}
  egress:
    {{- . | nindent 4 }}
  {{- end }}
{{- end -}}
