{{/* What values.schema.json cannot say: all that contradicts itself or is missing, in one message. */}}
{{- define "script-runner.check" -}}
{{- $v := .Values -}}
{{- $wrong := list -}}
{{- if not (or $v.redis.url $v.valkey.enabled) -}}
{{- $wrong = append $wrong "redis.url is not set: give the URL of Redis or Valkey, or set valkey.enabled" -}}
{{- end -}}
{{- if and $v.redis.url $v.valkey.enabled -}}
{{- $wrong = append $wrong "redis.url and valkey.enabled are both set: give one" -}}
{{- end -}}
{{- if and $v.valkey.enabled (not $v.redis.existingSecret) -}}
{{- $wrong = append $wrong "valkey.enabled needs a password: make a Secret and name it in redis.existingSecret" -}}
{{- end -}}
{{- if and $v.valkey.enabled $v.redis.username -}}
{{- $wrong = append $wrong "redis.username: the built-in Valkey knows the default user only" -}}
{{- end -}}
{{- if and $v.redis.caSecret (not (hasPrefix "rediss" $v.redis.url)) -}}
{{- $wrong = append $wrong "redis.caSecret is for a URL that begins with rediss" -}}
{{- end -}}
{{- if not $v.store.url -}}
{{- $wrong = append $wrong "store.url is not set: give s3://, az://, gs:// or file://" -}}
{{- end -}}
{{- $claimed := or $v.store.persistence.existingClaim $v.store.persistence.size -}}
{{- if and (hasPrefix "file://" $v.store.url) (not $claimed) -}}
{{- $wrong = append $wrong "store.url is a folder, which pods do not share: set store.persistence.existingClaim or .size (ReadWriteMany), or use an object store" -}}
{{- end -}}
{{- if and $v.store.url $claimed (not (hasPrefix "file://" $v.store.url)) -}}
{{- $wrong = append $wrong "store.persistence is for store.url file:// only" -}}
{{- end -}}
{{- if and (hasPrefix "file://" $v.store.url) $v.store.redirectDownloads -}}
{{- $wrong = append $wrong "store.redirectDownloads needs an object store" -}}
{{- end -}}
{{- if not $v.auth.provider -}}
{{- $wrong = append $wrong "auth.provider is not set: say who may ask (auth0, a plug-in's word, or none: everyone who can reach the server)" -}}
{{- end -}}
{{- if and (eq $v.auth.provider "auth0") (not (and $v.auth.auth0.domain $v.auth.auth0.audience)) -}}
{{- $wrong = append $wrong "auth.provider auth0 needs auth.auth0.domain and auth.auth0.audience" -}}
{{- end -}}
{{- if and $v.config $v.existingConfigMap.name -}}
{{- $wrong = append $wrong "config and existingConfigMap.name are both set: give one" -}}
{{- end -}}
{{- if and $v.ingress.enabled (not $v.ingress.hosts) -}}
{{- $wrong = append $wrong "ingress.enabled needs ingress.hosts" -}}
{{- end -}}
{{- if gt (int $v.server.autoscaling.minReplicas) (int $v.server.autoscaling.maxReplicas) -}}
{{- $wrong = append $wrong "server.autoscaling: minReplicas is more than maxReplicas" -}}
{{- end -}}
{{- if gt (int $v.worker.keda.minReplicas) (int $v.worker.keda.maxReplicas) -}}
{{- $wrong = append $wrong "worker.keda: minReplicas is more than maxReplicas" -}}
{{- end -}}
{{- if and $v.worker.keda.enabled (eq $v.worker.keda.trigger "redis") -}}
{{- if contains "+sentinel://" $v.redis.url -}}
{{- $wrong = append $wrong "worker.keda.trigger redis cannot ask a Sentinel: use metrics" -}}
{{- end -}}
{{- if $v.redis.caSecret -}}
{{- $wrong = append $wrong "worker.keda.trigger redis cannot use redis.caSecret: use metrics" -}}
{{- end -}}
{{- end -}}
{{- if and $v.monitoring.prometheusRule.enabled (not (fromYaml $v.monitoring.prometheusRule.rules).groups) -}}
{{- $wrong = append $wrong "monitoring.prometheusRule.enabled needs rules: --set-file monitoring.prometheusRule.rules=deploy/monitoring/alerts.yaml" -}}
{{- end -}}
{{- if $wrong -}}
{{- fail (printf "\n\nThese values cannot work:\n- %s\n" (join "\n- " $wrong)) -}}
{{- end -}}
{{- end -}}
