{{/* What the pods of servers and workers have in common. */}}

{{/* Variables of both. */}}
{{- define "script-runner.environment" -}}
{{- $v := .Values -}}
- name: SCRIPT_RUNNER_REDIS_URL
  value: {{ include "script-runner.redisUrl" . | quote }}
{{- with $v.redis.username }}
- name: SCRIPT_RUNNER_REDIS_USERNAME
  value: {{ . | quote }}
{{- end }}
{{- if $v.redis.existingSecret }}
- name: SCRIPT_RUNNER_REDIS_PASSWORD
  valueFrom:
    secretKeyRef:
      name: {{ $v.redis.existingSecret | quote }}
      key: {{ $v.redis.passwordKey | quote }}
{{- end }}
- name: SCRIPT_RUNNER_NAMESPACE
  value: {{ include "script-runner.queue" . | quote }}
- name: SCRIPT_RUNNER_REDIS_REPLICAS
  value: {{ $v.redis.replicas | quote }}
- name: SCRIPT_RUNNER_LEASE_SECONDS
  value: {{ $v.leaseSeconds | toJson | quote }}
- name: SCRIPT_RUNNER_STORE
  value: {{ $v.store.url | quote }}
{{- if include "script-runner.configMap" . }}
- name: SCRIPT_RUNNER_CONFIG
  value: /etc/script-runner/config/config.json
{{- end }}
- name: SCRIPT_RUNNER_RUNDIR
  value: /tmp
- name: SCRIPT_RUNNER_METRICS
  value: 0.0.0.0:9090
- name: SCRIPT_RUNNER_LOG_LEVEL
  value: {{ $v.logging.level | quote }}
- name: SCRIPT_RUNNER_LOG_FORMAT
  value: {{ $v.logging.format | quote }}
{{- include "script-runner.variables" $v.store.environment }}
{{- include "script-runner.variables" $v.environment }}
{{- end -}}

{{/* A map as a list of variables. A number is written as JSON has it: Helm alone makes 5e+06 of five million. */}}
{{- define "script-runner.variables" -}}
{{- range $name, $value := . }}
- name: {{ $name | quote }}
  value: {{ (kindIs "string" $value | ternary $value (toJson $value)) | quote }}
{{- end }}
{{- end -}}

{{/* Secrets whose keys become variables. Takes (list $ names…). */}}
{{- define "script-runner.environmentFrom" -}}
{{- $secrets := compact (concat (rest .) (first .).Values.environmentSecrets) | uniq -}}
{{- if $secrets }}
envFrom:
{{- range $secrets }}
  - secretRef:
      name: {{ . | quote }}
{{- end }}
{{- end }}
{{- end -}}

{{/* The fields of a pod's spec that do not depend on what runs in it. Takes (list $ component). */}}
{{- define "script-runner.podSpec" -}}
{{- $root := index . 0 -}}
{{- $component := index . 1 -}}
{{- $values := index $root.Values $component -}}
serviceAccountName: {{ include "script-runner.serviceAccount" . | quote }}
automountServiceAccountToken: false
enableServiceLinks: false {{- /* a Service called script-runner would set SCRIPT_RUNNER_PORT */}}
{{- with $root.Values.image.pullSecrets }}
imagePullSecrets:
{{- range . }}
  - name: {{ . | quote }}
{{- end }}
{{- end }}
{{- include "script-runner.podSecurity" $root.Values.runAsUser }}
{{- with $values.priorityClassName }}
priorityClassName: {{ . | quote }}
{{- end }}
{{- with $values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.topologySpread }}
topologySpreadConstraints:
{{- range . }}
  - topologyKey: {{ .topologyKey | quote }}
    maxSkew: {{ .maxSkew }}
    whenUnsatisfiable: {{ .whenUnsatisfiable }}
    labelSelector:
      matchLabels: {{- include "script-runner.selector" (list $root $component) | nindent 8 }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "script-runner.podSecurity" }}
securityContext:
  runAsNonRoot: true
  runAsUser: {{ int64 . }}
  runAsGroup: {{ int64 . }}
  fsGroup: {{ int64 . }}
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile:
    type: RuntimeDefault
{{- end -}}

{{- define "script-runner.containerSecurity" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
{{- end -}}

{{- define "script-runner.mounts" -}}
- name: temporary
  mountPath: /tmp
{{- if include "script-runner.configMap" . }}
- name: config
  mountPath: /etc/script-runner/config
  readOnly: true
{{- end }}
{{- if .Values.redis.caSecret }}
- name: redis-ca
  mountPath: /etc/script-runner/redis-ca
  readOnly: true
{{- end }}
{{- if include "script-runner.storeIsFolder" . }}
- name: artifacts
  mountPath: {{ trimPrefix "file://" .Values.store.url | quote }}
{{- end }}
{{- end -}}

{{/* Takes (list $ component). */}}
{{- define "script-runner.volumes" -}}
{{- $root := index . 0 -}}
- name: temporary
  emptyDir:
    sizeLimit: {{ (index $root.Values (index . 1)).temporarySize }}
{{- with include "script-runner.configMap" $root }}
- name: config
  configMap:
    name: {{ . | quote }}
    items:
      - key: {{ ternary $root.Values.existingConfigMap.key "config.json" (ne $root.Values.existingConfigMap.name "") | quote }}
        path: config.json
{{- end }}
{{- with $root.Values.redis.caSecret }}
- name: redis-ca
  secret:
    secretName: {{ . | quote }}
    items:
      - key: {{ $root.Values.redis.caKey | quote }}
        path: {{ $root.Values.redis.caKey | quote }}
{{- end }}
{{- if include "script-runner.storeIsFolder" $root }}
- name: artifacts
  persistentVolumeClaim:
    claimName: {{ include "script-runner.storeClaim" $root | quote }}
{{- end }}
{{- end -}}

{{/* Pods roll when the configuration that the chart made has changed. Takes (list $ component). */}}
{{- define "script-runner.podMetadata" -}}
{{- $root := index . 0 -}}
{{- $values := index $root.Values (index . 1) -}}
labels: {{- include "script-runner.selector" . | nindent 2 }}
{{- with $values.podLabels }}
{{- toYaml . | nindent 2 }}
{{- end }}
annotations:
  script-runner/config: {{ toJson $root.Values.config | sha256sum | quote }}
{{- with $values.podAnnotations }}
{{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}
