{{- define "labels" -}}
app.kubernetes.io/name: resource-capsules
{{- end }}
{{- define "image" -}}
image: {{ printf "%s:%s" .Values.image.repository (.Values.image.tag | toString) | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
{{- end }}
