{{/* Names, labels and what is computed from values. */}}

{{/* 45 characters: what is made of it stays within the 52 that a StatefulSet may have. */}}
{{- define "script-runner.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 45 | trimSuffix "-" -}}
{{- end -}}

{{- define "script-runner.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- $both := ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) -}}
{{- default $both .Values.fullnameOverride | trunc 45 | trimSuffix "-" -}}
{{- end -}}

{{/* What selects pods; never changes in the life of a release. Takes (list $ component). */}}
{{- define "script-runner.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ include "script-runner.name" $root | quote }}
app.kubernetes.io/instance: {{ $root.Release.Name | quote }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{- define "script-runner.labels" -}}
{{- $root := index . 0 -}}
{{ include "script-runner.selector" . }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- end -}}

{{/* An image reference. Takes (dict "repository" … "tag" … "digest" …) and a default tag: (list image tag). */}}
{{- define "script-runner.image" -}}
{{- $image := index . 0 -}}
{{- if $image.digest -}}
{{ printf "%s@%s" $image.repository $image.digest }}
{{- else -}}
{{ printf "%s:%s" $image.repository (default (index . 1) $image.tag) }}
{{- end -}}
{{- end -}}

{{- define "script-runner.serviceAccount" -}}
{{- $root := index . 0 -}}
{{- $component := index . 1 -}}
{{- $account := (index $root.Values $component).serviceAccount -}}
{{- if $account.create -}}
{{ default (printf "%s-%s" (include "script-runner.fullname" $root) $component) $account.name }}
{{- else -}}
{{ default "default" $account.name }}
{{- end -}}
{{- end -}}

{{- define "script-runner.configMap" -}}
{{- if .Values.existingConfigMap.name -}}
{{ .Values.existingConfigMap.name }}
{{- else if .Values.config -}}
{{ printf "%s-config" (include "script-runner.fullname" .) }}
{{- end -}}
{{- end -}}

{{- define "script-runner.storeIsFolder" -}}
{{- if hasPrefix "file://" .Values.store.url }}true{{ end -}}
{{- end -}}

{{- define "script-runner.storeClaim" -}}
{{- default (printf "%s-artifacts" (include "script-runner.fullname" .)) .Values.store.persistence.existingClaim -}}
{{- end -}}

{{- define "script-runner.redisUrl" -}}
{{- if .Values.valkey.enabled -}}
redis://{{ include "script-runner.fullname" . }}-valkey:6379/0
{{- else -}}
{{- $url := .Values.redis.url -}}
{{- if .Values.redis.caSecret -}}
{{- $url = printf "%s%sssl_ca_certs=/etc/script-runner/redis-ca/%s" $url (ternary "&" "?" (contains "?" $url)) .Values.redis.caKey -}}
{{- end -}}
{{ $url }}
{{- end -}}
{{- end -}}

{{/* The beginning of all keys in Redis: at most 64 characters, and another one in each namespace and release. */}}
{{- define "script-runner.queue" -}}
{{- $name := printf "%s.%s" .Release.Namespace (include "script-runner.fullname" .) -}}
{{- if gt (len $name) 64 -}}
{{- $name = printf "%s-%s" (trunc 55 $name) (sha256sum $name | trunc 8) -}}
{{- end -}}
{{- default $name .Values.redis.namespace -}}
{{- end -}}

{{/* The ports that Redis listens on, as a JSON list. */}}
{{- define "script-runner.redisPorts" -}}
{{- if .Values.networkPolicy.redisPorts -}}
{{ toJson .Values.networkPolicy.redisPorts }}
{{- else if contains "+sentinel://" .Values.redis.url -}}
[26379, 6379]
{{- else -}}
[{{ regexFind ":[0-9]+$" (urlParse (include "script-runner.redisUrl" .)).host | default ":6379" | trimPrefix ":" }}]
{{- end -}}
{{- end -}}

{{/* Seconds from TERM to KILL: the drain, then the grace of what still runs, then time to tell how it ended. */}}
{{- define "script-runner.workerGrace" -}}
{{- $grace := .Values.worker.graceSeconds -}}
{{- if hasKey .Values.config "grace_seconds" }}{{ $grace = .Values.config.grace_seconds }}{{ end -}}
{{- add .Values.worker.drainTimeoutSeconds (int (ceil $grace)) 15 -}}
{{- end -}}
