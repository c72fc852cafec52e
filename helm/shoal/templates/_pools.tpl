{{/* The pools of workers. */}}

{{/*
`over` laid upon `base` (list base over), as YAML: maps are merged, all else replaces, null and zero values too, which
sprig's merge functions do not promise.
*/}}
{{- define "shoal.layered" -}}
{{- $layered := deepCopy (index . 0) -}}
{{- range $key, $value := index . 1 -}}
{{- $below := get $layered $key -}}
{{- if and (kindIs "map" $value) (kindIs "map" $below) -}}
{{- $_ := set $layered $key (include "shoal.layered" (list $below $value) | fromYaml) -}}
{{- else -}}
{{- $_ := set $layered $key $value -}}
{{- end -}}
{{- end -}}
{{- toYaml $layered -}}
{{- end -}}

{{/* All pools with their defaults, as `{pools: [...]}`. */}}
{{- define "shoal.pools" -}}
{{- $pools := list -}}
{{- range .Values.workers.pools -}}
{{- $pools = append $pools (include "shoal.layered" (list $.Values.workers.defaults .) | fromYaml) -}}
{{- end -}}
{{- dict "pools" $pools | toYaml -}}
{{- end -}}

{{/* The container's resources with the pool's GPUs. */}}
{{- define "shoal.pool.resources" -}}
{{- $resources := deepCopy .resources -}}
{{- if gt (int .gpu.count) 0 -}}
{{- range list "requests" "limits" -}}
{{- $_ := set $resources . (mergeOverwrite (default dict (get $resources .)) (dict $.gpu.resourceName (int $.gpu.count))) -}}
{{- end -}}
{{- end -}}
{{- toYaml $resources -}}
{{- end -}}

{{/* Folders whose files jobs may read, with commas between them. */}}
{{- define "shoal.dataRoots" -}}
{{- $claim := ternary (list .Values.data.mountPath) list (not (empty .Values.data.existingClaim)) -}}
{{- concat .Values.data.roots $claim | uniq | join "," -}}
{{- end -}}

{{/* A model type that workers of the release take: logistic if any pool takes all, otherwise the first that one takes. */}}
{{- define "shoal.firstModel" -}}
{{- $models := list -}}
{{- $all := list -}}
{{- range (include "shoal.pools" . | fromYaml).pools -}}
{{- $models = concat $models .supportedModels -}}
{{- if not .supportedModels }}{{ $all = list "logistic" }}{{ end -}}
{{- end -}}
{{- first (concat $all $models (list "logistic")) -}}
{{- end -}}
