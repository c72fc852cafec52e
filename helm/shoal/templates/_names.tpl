{{/* Names of objects, and the labels that tell whose they are. */}}

{{- define "shoal.name" -}}
{{- default .Chart.Name .Values.nameOverride -}}
{{- end -}}

{{/*
Start of every name: `fullnameOverride`, or the release's name, followed by the chart's unless it contains that. A
release may have dots in its name and begin with a digit; the name of a Service may not.
*/}}
{{- define "shoal.fullname" -}}
{{- $name := include "shoal.name" . -}}
{{- $full := printf "%s-%s" .Release.Name $name -}}
{{- if .Values.fullnameOverride -}}
{{- $full = .Values.fullnameOverride -}}
{{- else if contains $name .Release.Name -}}
{{- $full = .Release.Name -}}
{{- end -}}
{{- $full = replace "." "-" $full -}}
{{- if not (regexMatch "^[a-z]" $full) -}}
{{- $full = printf "shoal-%s" $full -}}
{{- end -}}
{{- $full -}}
{{- end -}}

{{/*
`<fullname>-<suffix>`, (list root suffix). At most 52 characters, because the pods of a StatefulSet get a label of 63
with its name and a hash of 10. A longer one is cut, and gets a hash that keeps it apart from others cut alike.
*/}}
{{- define "shoal.named" -}}
{{- $full := printf "%s-%s" (include "shoal.fullname" (index . 0)) (index . 1) -}}
{{- if gt (len $full) 52 -}}
{{- printf "%s-%s" (trunc 43 $full | trimSuffix "-") (sha256sum $full | trunc 8) -}}
{{- else -}}
{{- $full -}}
{{- end -}}
{{- end -}}

{{- define "shoal.master.name" -}}{{ include "shoal.named" (list . "master") }}{{- end -}}
{{- define "shoal.parameterServers.name" -}}{{ include "shoal.named" (list . "ps") }}{{- end -}}
{{- define "shoal.workers.name" -}}{{ include "shoal.named" (list . "worker") }}{{- end -}}

{{- define "shoal.master.address" -}}{{ include "shoal.master.name" . }}:7070{{- end -}}

{{/* (list serviceAccount name): the account's name, the chart's own or one that is there. */}}
{{- define "shoal.serviceAccountName" -}}
{{- $account := index . 0 -}}
{{- default (ternary (index . 1) "default" $account.create) $account.name -}}
{{- end -}}

{{/*
Labels that find the pods of a role (dict root, component, pool). They are in selectors and claim templates, which
cannot change: nothing belongs here that an upgrade changes, or a value other than a name.
*/}}
{{- define "shoal.selectorLabels" -}}
app.kubernetes.io/name: {{ include "shoal.name" .root | quote }}
app.kubernetes.io/instance: {{ .root.Release.Name | quote }}
{{- with .component }}
app.kubernetes.io/component: {{ . }}
{{- end }}
{{- with .pool }}
shoal/pool: {{ . | quote }}
{{- end }}
{{- end -}}

{{/* Labels of pods: without the chart's version, so that a new chart alone restarts nothing. */}}
{{- define "shoal.podLabels" -}}
{{- $labels := dict -}}
{{- range list .root.Values.commonLabels .labels -}}
{{- $labels = mergeOverwrite $labels (deepCopy (default dict .)) -}}
{{- end -}}
{{- $own := include "shoal.selectorLabels" . | fromYaml -}}
{{- $_ := set $own "app.kubernetes.io/part-of" "shoal" -}}
{{- $_ := set $own "app.kubernetes.io/managed-by" .root.Release.Service -}}
{{- $_ := set $own "app.kubernetes.io/version" (.root.Chart.AppVersion | replace "+" "_" | trunc 63) -}}
{{- toYaml (mergeOverwrite $labels $own) -}}
{{- end -}}

{{/* Labels of all other objects. */}}
{{- define "shoal.labels" -}}
{{ include "shoal.podLabels" . }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- end -}}

{{/* `labels:` and `annotations:` of an object (dict root, component, pool, labels, annotations). */}}
{{- define "shoal.metadata" -}}
labels:
  {{- include "shoal.labels" . | nindent 2 }}
{{- with mergeOverwrite (deepCopy .root.Values.commonAnnotations) (default dict .annotations) }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* The name of a pool's StatefulSet (list root pool-name). */}}
{{- define "shoal.pool.name" -}}{{ include "shoal.named" (list (index . 0) (printf "worker-%s" (index . 1))) }}{{- end -}}
