{{- define "myelin.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 50 | trimSuffix "-" -}}
{{- end -}}

{{- define "myelin.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- $name := include "myelin.name" . -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "myelin.selector" -}}
app.kubernetes.io/name: {{ include "myelin.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "myelin.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{ include "myelin.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: myelin
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "myelin.host" -}}
{{- default (include "myelin.serverHost" .) .Values.host -}}
{{- end -}}

{{/* The server's name without a port. */}}
{{- define "myelin.serverHost" -}}
{{- regexReplaceAll ":[0-9]+$" .Values.serverName "" -}}
{{- end -}}

{{- define "myelin.image" -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) -}}
{{- end -}}
{{- end -}}

{{- define "myelin.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "myelin.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "myelin.replicated" -}}
{{- if or .Values.autoscaling.enabled (gt (int .Values.replicaCount) 1) -}}yes{{- end -}}
{{- end -}}

{{- define "myelin.secret" -}}
{{- default (printf "%s-registration" (include "myelin.fullname" .)) .Values.registration.existingSecret -}}
{{- end -}}

{{- define "myelin.postgres" -}}
{{- printf "%s-postgres" (include "myelin.fullname" .) -}}
{{- end -}}

{{- define "myelin.postgresSecret" -}}
{{- default (include "myelin.postgres" .) .Values.database.bundled.existingSecret -}}
{{- end -}}

{{- define "myelin.cnpgCluster" -}}
{{- default (include "myelin.postgres" .) .Values.database.cloudnativepg.cluster -}}
{{- end -}}

{{- define "myelin.tlsSecret" -}}
{{- default (printf "%s-tls" (include "myelin.fullname" .)) .Values.tls.secretName -}}
{{- end -}}

{{/* Where other servers connect to, unless it is port 8448 of the server's name. */}}
{{- define "myelin.delegate" -}}
{{- if or (eq .Values.tls.mode "none") (ne (include "myelin.host" .) (include "myelin.serverHost" .)) -}}
{{- include "myelin.host" . -}}:443
{{- end -}}
{{- end -}}

{{/* What a value cannot say by itself. */}}
{{- define "myelin.validate" -}}
{{- if not .Values.serverName -}}
{{- fail "serverName is missing: the name behind the colon of every user, such as example.org. It can never change." -}}
{{- end -}}
{{- if include "myelin.replicated" . -}}
{{- if eq .Values.database.mode "sqlite" -}}
{{- fail "several replicas need PostgreSQL: set database.mode to bundled, external or cloudnativepg, or replicaCount to 1 and autoscaling.enabled to false" -}}
{{- end -}}
{{- if and (not .Values.persistence.existingClaim) (not (has "ReadWriteMany" .Values.persistence.accessModes)) -}}
{{- fail "several replicas need a volume for uploaded files that all of them can write: set persistence.accessModes to [ReadWriteMany] and a storageClass that has it, or name a persistence.existingClaim" -}}
{{- end -}}
{{- end -}}
{{- if and (eq .Values.database.mode "external") (not .Values.database.external.url) (not .Values.database.external.existingSecret) -}}
{{- fail "database.mode is external: set database.external.existingSecret (or database.external.url)" -}}
{{- end -}}
{{- if and (eq .Values.database.mode "cloudnativepg") (not .Values.database.cloudnativepg.create) (not .Values.database.cloudnativepg.cluster) -}}
{{- fail "database.cloudnativepg.create is false: name the cluster in database.cloudnativepg.cluster" -}}
{{- end -}}
{{- if and (eq .Values.tls.mode "acme") (not .Values.tls.acme.acceptTerms) -}}
{{- fail "tls.mode is acme: set tls.acme.acceptTerms to true if you accept the terms of service of the certificate authority; without it no certificate is asked for" -}}
{{- end -}}
{{- if and (eq .Values.tls.mode "secret") (not .Values.tls.secretName) -}}
{{- fail "tls.mode is secret: name a Secret with tls.crt and tls.key in tls.secretName" -}}
{{- end -}}
{{- if and (eq .Values.tls.mode "certManager") (not .Values.tls.certManager.issuerRef.name) -}}
{{- fail "tls.mode is certManager: name the issuer in tls.certManager.issuerRef.name" -}}
{{- end -}}
{{- if and .Values.gateway.enabled (not .Values.gateway.parentRefs) -}}
{{- fail "gateway.enabled: say in gateway.parentRefs which Gateway the route belongs to" -}}
{{- end -}}
{{- if and (or .Values.ingress.enabled .Values.gateway.enabled) (ne .Values.tls.mode "none") -}}
{{- fail "an Ingress or Gateway speaks plain HTTP with the server: tls.mode must be none with ingress.enabled or gateway.enabled" -}}
{{- end -}}
{{- end -}}

{{- define "myelin.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
privileged: false
capabilities: {drop: [ALL]}
{{- end -}}
