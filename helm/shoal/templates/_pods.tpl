{{/* Parts of pods that all roles share. */}}

{{/*
The image (list root image): registry, repository, tag and digest; the registry is the first that is set of the role's,
`image.registry` and a parent chart's.
*/}}
{{- define "shoal.image" -}}
{{- $root := index . 0 -}}
{{- $image := index . 1 -}}
{{- $registry := coalesce $image.registry $root.Values.image.registry $root.Values.global.imageRegistry "" -}}
{{- $tag := coalesce $image.tag $root.Values.image.tag -}}
{{- with $registry }}{{ trimSuffix "/" . }}/{{ end -}}
{{- $image.repository -}}
{{- if or $tag (not $image.digest) }}:{{ default $root.Chart.AppVersion $tag }}{{ end -}}
{{- with $image.digest }}@{{ . }}{{ end -}}
{{- end -}}

{{- define "shoal.pullPolicy" -}}
{{- $root := index . 0 -}}
{{- default $root.Values.image.pullPolicy (index . 1).pullPolicy -}}
{{- end -}}

{{/*
What every pod's spec begins with (dict root, role, component, pool, tolerations). Service links are off because
Kubernetes' variables for a Service, such as SHOAL_MASTER_PORT, look like settings.
*/}}
{{- define "shoal.pod.spec" -}}
{{- $root := .root -}}
enableServiceLinks: false
{{- with concat $root.Values.image.pullSecrets (default list $root.Values.global.imagePullSecrets) | uniq }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  runAsNonRoot: true
  seccompProfile:
    type: RuntimeDefault
  fsGroupChangePolicy: OnRootMismatch
  {{- range $name := list "runAsUser" "runAsGroup" "fsGroup" "supplementalGroups" }}
  {{- with index $root.Values.podSecurityContext $name }}
  {{ $name }}: {{ toJson . }}
  {{- end }}
  {{- end }}
{{- with .role.terminationGracePeriodSeconds }}
terminationGracePeriodSeconds: {{ . }}
{{- end }}
{{- with .role.runtimeClassName }}
runtimeClassName: {{ . | quote }}
{{- end }}
{{- with default (include "shoal.priorityClassName" $root) .role.priorityClassName }}
priorityClassName: {{ . | quote }}
{{- end }}
{{- with .role.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .role.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with concat (default list .tolerations) .role.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .role.topologySpreadConstraints }}
topologySpreadConstraints:
  {{- $constraints := list }}
  {{- range . }}
  {{- $pods := dict "labelSelector" (dict "matchLabels" (include "shoal.selectorLabels" $ | fromYaml)) }}
  {{- $constraints = append $constraints (ternary . (merge (deepCopy .) $pods) (hasKey . "labelSelector")) }}
  {{- end }}
  {{- toYaml $constraints | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "shoal.container.securityContext" -}}
allowPrivilegeEscalation: false
capabilities:
  drop: [ALL]
readOnlyRootFilesystem: true
{{- end -}}

{{/* The class of pods that name none. */}}
{{- define "shoal.priorityClassName" -}}
{{- $class := .Values.priorityClass -}}
{{- if $class.name -}}
{{- $class.name -}}
{{- else if $class.create -}}
{{- printf "%s-%s" .Release.Namespace (include "shoal.fullname" .) -}}
{{- end -}}
{{- end -}}

{{/* The variables that the chart sets (own, as YAML), then the user's (dict own, role, where). */}}
{{- define "shoal.env" -}}
{{- $own := fromYamlArray .own -}}
{{- $names := list -}}
{{- range $own }}{{ $names = append $names .name }}{{ end -}}
{{- range .role.extraEnv -}}
{{- if has .name $names -}}
{{- fail (printf "%s.extraEnv: %s is set already, by the chart or further up in the list" $.where .name) -}}
{{- end -}}
{{- $names = append $names .name -}}
{{- end -}}
env:
  {{- toYaml (concat $own .role.extraEnv) | nindent 2 }}
{{- with .role.extraEnvFrom }}
envFrom:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Settings that every role has from the chart (list variable-prefix grpc-port http-port). */}}
{{- define "shoal.env.serving" -}}
- name: SHOAL_CONFIG
  value: /etc/shoal/shoal.yaml
- name: {{ index . 0 }}_HOST
  value: 0.0.0.0
- name: {{ index . 0 }}_PORT
  value: {{ index . 1 | quote }}
- name: {{ index . 0 }}_METRICS_PORT
  value: {{ index . 2 | quote }}
{{- end -}}

{{/* `ports:` and the probes of a container (dict role, grpc, http). */}}
{{- define "shoal.container.ports" -}}
ports:
  - name: grpc
    containerPort: {{ .grpc }}
  - name: http
    containerPort: {{ .http }}
{{- range $probe, $path := dict "startup" "/livez" "liveness" "/livez" "readiness" "/readyz" }}
{{ $probe }}Probe:
  httpGet:
    path: {{ $path }}
    port: http
  {{- toYaml (index $.role.probes $probe) | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Mounts and volumes of every role; each role adds its own. */}}
{{- define "shoal.container.mounts" -}}
- name: config
  mountPath: /etc/shoal
  readOnly: true
- name: tmp
  mountPath: /tmp
{{- with .sharedMemory }}
- name: shared-memory
  mountPath: /dev/shm
{{- end }}
{{- end -}}

{{- define "shoal.pod.volumes" -}}
- name: config
  configMap:
    name: {{ include "shoal.named" (list .root "config") }}
- name: tmp
  emptyDir:
    sizeLimit: {{ .role.tmp.sizeLimit | quote }}
{{- with .role.sharedMemory }}
- name: shared-memory
  emptyDir:
    medium: Memory
    sizeLimit: {{ .sizeLimit | quote }}
{{- end }}
{{- end -}}

{{/* A role's section of the settings file (list root section). */}}
{{- define "shoal.config.section" -}}
{{- dict (index . 1) (index (index . 0).Values.config (index . 1)) | toYaml -}}
{{- end -}}

{{/* Annotations of a pod (dict root, section, role, own): it is replaced when its section of the settings file changes. */}}
{{- define "shoal.pod.annotations" -}}
checksum/config: {{ include "shoal.config.section" (list .root .section) | sha256sum | quote }}
{{- with .own }}
{{ toYaml . }}
{{- end }}
{{- with .role.podAnnotations }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* The spec of a claim. */}}
{{- define "shoal.claim" -}}
accessModes:
  {{- toYaml .accessModes | nindent 2 }}
{{- with .storageClass }}
storageClassName: {{ . | quote }}
{{- end }}
resources:
  requests:
    storage: {{ .size | quote }}
{{- end -}}
