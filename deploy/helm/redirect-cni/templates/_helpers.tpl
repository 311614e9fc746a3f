{{/* Labels of every object. k8s-app is the label by which istiod's untaint controller knows a CNI agent. */}}
{{- define "redirect-cni.labels" -}}
app.kubernetes.io/name: redirect-cni
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
k8s-app: istio-cni-node
{{- with .Values.revision }}
istio.io/rev: {{ . | quote }}
{{- end }}
{{- end }}

{{/* What selects the agent's pods; it never changes. */}}
{{- define "redirect-cni.selector" -}}
app.kubernetes.io/name: redirect-cni
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "redirect-cni.name" -}}
{{ .Release.Name | trunc 53 | trimSuffix "-" }}-node
{{- end }}

{{/* Names of objects that are not in a namespace. */}}
{{- define "redirect-cni.clusterName" -}}
{{ printf "%s-%s" .Release.Name .Release.Namespace | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "redirect-cni.image" -}}
{{- if contains "/" .Values.image -}}
{{ .Values.image }}
{{- else -}}
{{- $hub := .Values.hub | default .Values.global.hub -}}
{{- $tag := .Values.tag | default .Values.global.tag | default .Chart.AppVersion -}}
{{- with $hub }}{{ . }}/{{ end -}}{{ .Values.image }}:{{ $tag }}{{ with .Values.variant }}-{{ . }}{{ end }}
{{- end -}}
{{- end }}

{{/* Directories on the node: the value, else the platform's. Call with (dict "root" $ "what" "bin" | "conf" | "netns"). */}}
{{- define "redirect-cni.dir" -}}
{{- $v := .root.Values -}}
{{- $named := dict "bin" $v.cniBinDir "conf" $v.cniConfDir "netns" $v.cniNetnsDir -}}
{{- $platforms := dict
    "gke" (dict "bin" "/home/kubernetes/bin")
    "k3s" (dict "bin" "/var/lib/rancher/k3s/data/cni" "conf" "/var/lib/rancher/k3s/agent/etc/cni/net.d")
    "k3d" (dict "bin" "/bin" "conf" "/var/lib/rancher/k3s/agent/etc/cni/net.d")
    "microk8s" (dict "bin" "/var/snap/microk8s/current/opt/cni/bin" "conf" "/var/snap/microk8s/current/args/cni-network")
    "minikube" (dict "netns" "/var/run/docker/netns")
    "openshift" (dict "bin" "/var/lib/cni/bin" "conf" "/etc/cni/multus/net.d") -}}
{{- $defaults := dict "bin" "/opt/cni/bin" "conf" "/etc/cni/net.d" "netns" "/var/run/netns" -}}
{{- $platform := get $platforms ($v.global.platform | default "") | default dict -}}
{{ get $named .what | default (get $platform .what) | default (get $defaults .what) }}
{{- end }}

{{/* multus, by value or by platform. */}}
{{- define "redirect-cni.multus" -}}
{{- if or (eq .Values.provider "multus") (and (eq .Values.provider "default") (eq .Values.global.platform "openshift")) }}true{{ end -}}
{{- end }}

{{/* Whether the agent speaks to the API server at all. */}}
{{- define "redirect-cni.usesApi" -}}
{{- if and (eq .Values.nodeEntry "keep") (or (eq .Values.podSource "kubernetes") (ne (include "redirect-cni.repairMode" .) "off") .Values.livePolicy) }}true{{ end -}}
{{- end }}

{{/* The repair mode in force: the first that is on. */}}
{{- define "redirect-cni.repairMode" -}}
{{- if or (not .Values.repair.enabled) (eq .Values.nodeEntry "remove") }}off
{{- else if .Values.repair.repairPods }}repair
{{- else if .Values.repair.labelPods }}label
{{- else if .Values.repair.deletePods }}delete
{{- else }}off
{{- end -}}
{{- end }}

{{/* The plugin's entry, as DESIGN names its keys. */}}
{{- define "redirect-cni.entry" -}}
{{- $v := .Values -}}
{{- $entry := dict
    "type" "redirect-cni"
    "capabilities" (dict "io.kubernetes.cri.pod-annotations" true "cgroupPath" true)
    "podSource" $v.podSource
    "excludeNamespaces" (prepend $v.excludeNamespaces .Release.Namespace | uniq)
    "proxy" $v.proxy
    "dnsCapture" $v.dnsCapture
    "guard" $v.guard
    "logLevel" ($v.logging.level | default $v.global.logging.level | default "info") -}}
{{- if $v.defaults }}{{ $_ := set $entry "defaults" $v.defaults }}{{ end -}}
{{- if $v.forbidOptOut }}{{ $_ := set $entry "forbidOptOut" true }}{{ end -}}
{{- if $v.refuseRuntimeClasses }}{{ $_ := set $entry "refuseRuntimeClasses" $v.refuseRuntimeClasses }}{{ end -}}
{{ $entry | toPrettyJson }}
{{- end }}
