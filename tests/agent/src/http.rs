//! Requests and answers: who is let in, what a path means, discovery, lists in pages, writes.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::body::Body;
use axum::http::{Method, StatusCode, Uri, header};
use axum::response::{IntoResponse as _, Response};
use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::select::Selector;
use super::shared::Shared;
use super::store::{Kind, Refused, merge};
use super::tls::{Identity, Listener};
use super::watching;

/// Serves in the calling thread until told to stop.
pub(crate) fn serve(
    tcp: std::net::TcpListener,
    identity: &Identity,
    shared: Arc<Shared>,
    stopped: oneshot::Receiver<()>,
) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("start tokio");
    runtime.block_on(async move {
        let listener = Listener::new(tcp, identity, Arc::clone(&shared));
        let app = axum::Router::new().fallback(move |request| answer(Arc::clone(&shared), request));
        tokio::select! {
            _ = axum::serve(listener, app) => {}
            _ = stopped => {}
        }
    });
}

async fn answer(shared: Arc<Shared>, request: axum::extract::Request) -> Response {
    let (parts, body) = request.into_parts();
    shared.log.lock().expect("log").push(format!("{} {}", parts.method, parts.uri));
    if shared.throttled.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok() {
        let mut response = status(&Refused(429, "TooManyRequests", "slow down".to_owned()));
        response.headers_mut().insert(header::RETRY_AFTER, header::HeaderValue::from_static("1"));
        return response;
    }
    let bearer = parts.headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let token = bearer.and_then(|value| value.strip_prefix("Bearer ")).unwrap_or_default();
    if !shared.tokens.lock().expect("tokens").iter().any(|known| known == token) {
        return status(&Refused(401, "Unauthorized", "Unauthorized".to_owned()));
    }
    let Ok(body) = axum::body::to_bytes(body, 8 << 20).await else {
        return status(&Refused(400, "BadRequest", "the body ended early".to_owned()));
    };
    let content = parts.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let done = discovery(parts.uri.path()).map(Ok).unwrap_or_else(|| {
        let asked = ApiRequest::parse(&parts.method, &parts.uri)?;
        asked.carry_out(&shared, &body, content.unwrap_or_default())
    });
    done.unwrap_or_else(|refused| status(&refused))
}

/// What a path and a query ask for.
struct ApiRequest {
    method: Method,
    kind: Kind,
    /// Asked through `events.k8s.io`.
    new_events: bool,
    namespace: Option<String>,
    name: Option<String>,
    query: HashMap<String, String>,
}

impl ApiRequest {
    fn parse(method: &Method, uri: &Uri) -> Result<ApiRequest, Refused> {
        let not_found = || Refused(404, "NotFound", format!("the server could not find {}", uri.path()));
        let parts: Vec<&str> = uri.path().trim_matches('/').split('/').collect();
        let (group, rest) = match parts.as_slice() {
            ["api", "v1", rest @ ..] => ("", rest),
            ["apis", group, "v1", rest @ ..] => (*group, rest),
            _ => return Err(not_found()),
        };
        let (namespace, rest) = match rest {
            ["namespaces", namespace, plural, rest @ ..] => {
                (Some((*namespace).to_owned()), [&[*plural], rest].concat())
            }
            rest => (None, rest.to_vec()),
        };
        let new_events = group == "events.k8s.io";
        let group = if new_events { "" } else { group };
        let (plural, name) = match rest.as_slice() {
            [plural] => (*plural, None),
            [plural, name] | [plural, name, "status"] => (*plural, Some((*name).to_owned())),
            _ => return Err(not_found()),
        };
        let kind = Kind::ALL.into_iter().find(|kind| kind.group == group && kind.plural == plural);
        let kind = kind.ok_or_else(not_found)?;
        let query = uri.query().unwrap_or_default().split('&').filter_map(|pair| pair.split_once('='));
        let query = query.map(|(key, value)| (key.to_owned(), unescape(value))).collect();
        Ok(ApiRequest { method: method.clone(), kind, new_events, namespace, name, query })
    }

    fn carry_out(self, shared: &Arc<Shared>, body: &[u8], content: &str) -> Result<Response, Refused> {
        let namespace = self.namespace.clone().unwrap_or_default();
        match (self.method.as_str(), &self.name) {
            ("GET", None) if self.flag("watch") => Ok(watching::respond(
                Arc::clone(shared),
                self.kind,
                self.namespace.clone(),
                self.selector(),
                &self.query,
            )),
            ("GET", None) => self.list(shared),
            ("GET", Some(name)) => self.found(shared.store.get(self.kind, &namespace, name), name),
            ("POST", None) => {
                let object = self.named(self.parse_body(body)?, shared);
                let made = shared.store.create(self.kind, object)?;
                Ok(reply(StatusCode::CREATED, &self.shown(made)))
            }
            ("PATCH", Some(name)) => self.patch(shared, name, body, content),
            ("PUT", Some(_)) => {
                let object = self.parse_body(body)?;
                self.expect_version(shared, &object)?;
                Ok(reply(StatusCode::OK, &self.shown(shared.store.put(self.kind, object))))
            }
            ("DELETE", Some(name)) => self.delete(shared, name, body),
            (method, _) => Err(Refused(
                405,
                "MethodNotAllowed",
                format!("{method} is not allowed on {}", self.kind.plural),
            )),
        }
    }

    fn list(&self, shared: &Shared) -> Result<Response, Refused> {
        let (version, after) = match self.query.get("continue").map(|token| token.split_once(' ')) {
            None => (shared.store.version(), String::new()),
            Some(Some((version, after)))
                if version.parse().is_ok_and(|v| shared.store.since(v).is_some()) =>
            {
                (version.parse().unwrap_or_default(), after.to_owned())
            }
            Some(_) => {
                return Err(Refused(410, "Expired", "The provided continue parameter is too old".to_owned()));
            }
        };
        let selector = self.selector();
        let place = |object: &Value| {
            let part = |key: &str| object["metadata"][key].as_str().unwrap_or_default().to_owned();
            format!("{}/{}", part("namespace"), part("name"))
        };
        let all = shared.store.list(self.kind, self.namespace.as_deref());
        let mut items: Vec<Value> =
            all.into_iter().filter(|object| selector.selects(object) && place(object) > after).collect();
        let limit = self.query.get("limit").and_then(|limit| limit.parse().ok()).unwrap_or(0);
        let mut metadata = json!({ "resourceVersion": version.to_string() });
        if limit > 0 && items.len() > limit {
            metadata["remainingItemCount"] = json!(items.len() - limit);
            items.truncate(limit);
            metadata["continue"] = json!(format!("{version} {}", place(&items[limit - 1])));
        }
        let items: Vec<Value> = items.into_iter().map(|object| self.shown(object)).collect();
        let kind = format!("{}List", self.kind.kind);
        let list =
            json!({ "apiVersion": self.api_version(), "kind": kind, "metadata": metadata, "items": items });
        Ok(reply(StatusCode::OK, &list))
    }

    fn patch(&self, shared: &Shared, name: &str, body: &[u8], content: &str) -> Result<Response, Refused> {
        let namespace = self.namespace.clone().unwrap_or_default();
        let patch = self.parse_body(body)?;
        let apply = content.starts_with("application/apply-patch");
        let merged = content.contains("merge-patch");
        if !apply && !merged {
            return Err(Refused(415, "UnsupportedMediaType", format!("{content} is not supported")));
        }
        let before = shared.store.get(self.kind, &namespace, name);
        let mut object = match before {
            None if apply => json!({ "metadata": { "name": name, "namespace": namespace } }),
            None => return Err(self.missing(name)),
            Some(before) => before,
        };
        self.expect_version(shared, &patch)?;
        merge(&mut object, patch);
        Ok(reply(StatusCode::OK, &self.shown(shared.store.put(self.kind, object))))
    }

    fn delete(&self, shared: &Shared, name: &str, body: &[u8]) -> Result<Response, Refused> {
        let namespace = self.namespace.clone().unwrap_or_default();
        let options: Value = serde_json::from_slice(body).unwrap_or_default();
        let object = shared.store.get(self.kind, &namespace, name).ok_or_else(|| self.missing(name))?;
        for key in ["uid", "resourceVersion"] {
            let wanted = &options["preconditions"][key];
            if !wanted.is_null() && *wanted != object["metadata"][key] {
                let message = format!("Precondition failed: {key} in precondition: {wanted}");
                return Err(Refused(409, "Conflict", message));
            }
        }
        shared.store.remove(self.kind, &namespace, name);
        Ok(reply(StatusCode::OK, &self.shown(object)))
    }

    fn expect_version(&self, shared: &Shared, object: &Value) -> Result<(), Refused> {
        let (name, wanted) = (&object["metadata"]["name"], &object["metadata"]["resourceVersion"]);
        let name = name.as_str().or(self.name.as_deref()).unwrap_or_default();
        let namespace = self.namespace.clone().unwrap_or_default();
        let now = shared.store.get(self.kind, &namespace, name);
        match now {
            Some(now) if !wanted.is_null() && *wanted != now["metadata"]["resourceVersion"] => Err(Refused(
                409,
                "Conflict",
                format!(
                    "Operation cannot be fulfilled on {} {name:?}: the object has been modified",
                    self.kind.plural
                ),
            )),
            _ => Ok(()),
        }
    }

    fn parse_body(&self, body: &[u8]) -> Result<Value, Refused> {
        let bad = |error: serde_json::Error| Refused(400, "BadRequest", error.to_string());
        let mut object: Value = serde_json::from_slice(body).map_err(bad)?;
        if self.new_events && object.is_object() {
            for (new, old) in [
                ("note", "message"),
                ("regarding", "involvedObject"),
                ("reportingController", "reportingComponent"),
            ] {
                if let Some(value) = object.get(new).cloned() {
                    object[old] = value;
                }
            }
        }
        Ok(object)
    }

    /// A name for an object that asks for one with `generateName`, and the namespace of the path.
    fn named(&self, mut object: Value, shared: &Shared) -> Value {
        if let (Value::Null, Some(prefix)) =
            (object["metadata"]["name"].clone(), object["metadata"]["generateName"].as_str())
        {
            object["metadata"]["name"] = json!(format!("{prefix}{}", shared.store.version()));
        }
        if let Some(namespace) = &self.namespace {
            object["metadata"]["namespace"] = json!(namespace);
        }
        object
    }

    fn found(&self, object: Option<Value>, name: &str) -> Result<Response, Refused> {
        object.map(|object| reply(StatusCode::OK, &self.shown(object))).ok_or_else(|| self.missing(name))
    }

    fn missing(&self, name: &str) -> Refused {
        Refused(404, "NotFound", format!("{} {name:?} not found", self.kind.plural))
    }

    fn api_version(&self) -> String {
        if self.new_events { "events.k8s.io/v1".to_owned() } else { self.kind.api_version() }
    }

    fn shown(&self, mut object: Value) -> Value {
        object["apiVersion"] = json!(self.api_version());
        object
    }

    fn selector(&self) -> Selector {
        let text = |key: &str| self.query.get(key).map(String::as_str);
        Selector::parse(text("fieldSelector"), text("labelSelector"))
    }

    fn flag(&self, key: &str) -> bool {
        self.query.get(key).is_some_and(|value| value == "true" || value == "1")
    }
}

/// What clients ask first: the versions, the groups, and what is in them.
fn discovery(path: &str) -> Option<Response> {
    let resources = |group: &str, alias: bool| {
        let here =
            Kind::ALL.into_iter().filter(|kind| kind.group == group && (!alias || *kind == Kind::EVENTS));
        let shown: Vec<Value> = here
            .map(|kind| {
                json!({ "name": kind.plural, "singularName": kind.kind.to_lowercase(), "kind": kind.kind,
                        "namespaced": kind.namespaced,
                        "shortNames": if kind == Kind::PODS { json!(["po"]) } else { json!([]) },
                        "verbs": ["get", "list", "watch", "create", "update", "patch", "delete"] })
            })
            .collect();
        json!(shown)
    };
    let list = |version: &str, resources: Value| json!({ "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version, "resources": resources });
    let body = match path {
        "/version" => json!({ "major": "1", "minor": "34", "gitVersion": "v1.34.0" }),
        "/api" => json!({ "kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": [] }),
        "/apis" => {
            let group = |name: &str| {
                let version = json!({ "groupVersion": format!("{name}/v1"), "version": "v1" });
                json!({ "name": name, "versions": [version], "preferredVersion": version })
            };
            json!({ "kind": "APIGroupList", "apiVersion": "v1",
                    "groups": [group("events.k8s.io"), group(Kind::NETWORKS.group)] })
        }
        "/api/v1" => list("v1", resources("", false)),
        "/apis/events.k8s.io/v1" => list("events.k8s.io/v1", resources("", true)),
        "/apis/k8s.cni.cncf.io/v1" => list("k8s.cni.cncf.io/v1", resources(Kind::NETWORKS.group, false)),
        _ => return None,
    };
    Some(reply(StatusCode::OK, &body))
}

fn reply(code: StatusCode, body: &Value) -> Response {
    (code, [(header::CONTENT_TYPE, "application/json")], Body::from(body.to_string())).into_response()
}

fn status(refused: &Refused) -> Response {
    let Refused(code, ..) = refused;
    reply(StatusCode::from_u16(*code).expect("a status code"), &refused.object())
}

/// Takes percent signs and plus signs out of a query.
fn unescape(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let escaped = (bytes[at] == b'%').then(|| text.get(at + 1..at + 3)).flatten();
        match escaped.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) => {
                out.push(byte);
                at += 3;
            }
            None => {
                out.push(if bytes[at] == b'+' { b' ' } else { bytes[at] });
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}
