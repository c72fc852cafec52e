{{/*
What the schema cannot say: values that contradict each other, and values that would be ignored. Included by a template
that is always rendered.
*/}}
{{- define "shoal.checks" -}}
{{- $values := .Values -}}
{{- $master := $values.master -}}
{{- $claim := $master.persistence.existingClaim -}}
{{- $external := include "shoal.store.external" . -}}
{{- $rules := list
  (list (and (hasKey $values "enabled") (not $values.enabled))
    "enabled: false is for a parent chart, as the condition of its dependency; on its own the chart has to install something")
  (list (and $master.store.url $master.store.existingSecret.name)
    "master.store: give url or existingSecret, not both")
  (list (and $claim $external)
    "master.persistence.existingClaim: not used with master.store, where the database has the jobs")
  (list (and $claim (not $master.persistence.enabled))
    "master.persistence.existingClaim: not used with persistence.enabled: false")
  (list (and (eq $master.strategy "RollingUpdate") (not $external))
    "master.strategy: RollingUpdate needs master.store; two masters cannot share a SQLite file")
  (list (and (eq $master.service.type "ClusterIP") $master.service.nodePort)
    "master.service.nodePort: needs master.service.type NodePort or LoadBalancer")
  (list (and (ne $master.service.type "LoadBalancer") $master.service.loadBalancerSourceRanges)
    "master.service.loadBalancerSourceRanges: needs master.service.type LoadBalancer")
  (list (and $values.monitoring.podMonitor.enabled $values.monitoring.serviceMonitor.enabled)
    "monitoring: enable podMonitor or serviceMonitor; with both each metric is scraped twice")
  (list (and $values.monitoring.serviceMonitor.enabled (ne $master.service.type "ClusterIP"))
    (printf "monitoring.serviceMonitor: a Service of type %s does not carry the master's metrics; use podMonitor" $master.service.type))
-}}
{{- $labels := dict "commonLabels" $values.commonLabels "master.podLabels" $master.podLabels "parameterServers.podLabels" $values.parameterServers.podLabels -}}
{{- $names := list -}}
{{- range (include "shoal.pools" . | fromYaml).pools -}}
{{- $rules = append $rules (list (has .name $names) (printf "workers.pools: two are called %s" .name)) -}}
{{- $names = append $names .name -}}
{{- $_ := set $labels (printf "workers.pools[%s].podLabels" .name) .podLabels -}}
{{- end -}}
{{- range $where, $given := $labels -}}
{{- range $label, $_ := $given -}}
{{- $own := or (hasPrefix "app.kubernetes.io/" $label) (hasPrefix "shoal/" $label) (eq $label "helm.sh/chart") -}}
{{- $rules = append $rules (list $own (printf "%s: %s is the chart's own" $where $label)) -}}
{{- end -}}
{{- end -}}
{{- $broken := list -}}
{{- range $rules -}}
{{- if index . 0 }}{{ $broken = append $broken (index . 1) }}{{ end -}}
{{- end -}}
{{- if $broken -}}
{{- fail (printf "\n\nvalues that cannot be:\n  * %s\n" (join "\n  * " $broken)) -}}
{{- end -}}
{{- end -}}
