//! One pod: how its connections go, with the counters on the arrows, and the policy with the source of each
//! part.

use maud::{Markup, html};
use redirect_common::Event;
use redirect_user::attach::record::Attachment;
use redirect_user::connections::Connection;
use redirect_user::inspect::LinkState;
use redirect_user::policy::Policy;
use redirect_user::policy::parameters::PARAMETERS;
use serde_json::Value;

use super::page;
use super::picture::{Arrow, boxed, shortened, tips};
use crate::output;

/// How many letters of a name fit into the picture.
const IN_THE_PICTURE: usize = 80;

/// What a page about a pod is made of.
pub(crate) struct About<'a> {
    pub(crate) attachment: &'a Attachment,
    pub(crate) health: &'a str,
    pub(crate) links: &'a [LinkState],
    pub(crate) counters: &'a [(Event, u64)],
    pub(crate) connections: &'a [Connection],
}

impl About<'_> {
    fn count(&self, events: &[Event]) -> u64 {
        self.counters.iter().filter(|(event, _)| events.contains(event)).map(|(_, count)| count).sum()
    }

    /// The page.
    pub(crate) fn draw(&self, every: Option<u64>) -> Markup {
        let name = output::name(self.attachment);
        let addresses: Vec<_> = self.attachment.addresses.iter().map(ToString::to_string).collect();
        let body = html! {
            p.sub { (addresses.join(", ")) " \u{b7} " (self.health) }
            figure {
                div.scroll { (self.picture()) }
                figcaption.legend {
                    span.good { "\u{2192} through the sidecar" }
                    span.plain { "\u{21e2} left alone" }
                    span.bad { "\u{2192} refused" }
                    "Connections since the pod was attached."
                }
            }
            div id="tables" {
                h2 { "Policy" } (policy(&self.attachment.policy))
                h2 { "Captured connections" } (self.sockets())
                h2 { "Counters" } (self.table_of_counters())
                h2 { "Links" } (self.table_of_links())
            }
        };
        page(&format!("Interception in {name}"), every, &body)
    }

    fn picture(&self) -> Markup {
        let proxy = &self.attachment.policy.proxy;
        let port = |port: u16| format!("port {port}");
        html! {
            svg viewBox="-15 0 1150 420" role="img" aria-label="How this pod's connections go" {
                (tips())
                rect.pod x="206" y="30" width="700" height="370" rx="14" {}
                text.soft x="222" y="52" { (shortened(&output::name(self.attachment), IN_THE_PICTURE)) }
                (boxed((10, 175), (110, 80), "clients", "outside"))
                (boxed((1000, 175), (110, 80), "servers", "outside"))
                (boxed((230, 175), (120, 80), "sidecar", &port(proxy.inbound_port)))
                (boxed((500, 175), (120, 80), "application", "every container"))
                (boxed((770, 175), (120, 80), "sidecar", &port(proxy.outbound_port)))
                @if self.attachment.policy.dns_capture {
                    (boxed((770, 320), (120, 60), "DNS proxy", &port(proxy.dns_port)))
                }
                // What the sidecar passes on is not ours to count.
                path.then d="M350 215 L496 215" marker-end="url(#tip-then)" {}
                text.soft x="423" y="205" text-anchor="middle" { "passed on" }
                @for arrow in self.arrows() { (arrow.draw()) }
            }
        }
    }

    fn arrows(&self) -> Vec<Arrow<'_>> {
        use Event as E;
        let guard: Vec<_> = E::GUARD.into_iter().filter(|event| *event != E::GuardInbound).collect();
        let refused = [E::NoListener, E::Unreachable, E::NoStorage, E::ConfigChanged, E::DnsRefused];
        let arrow = |kind, path, label, what, events: &[Event]| Arrow {
            kind,
            path,
            label,
            what,
            count: self.count(events),
        };
        let mut arrows = vec![
            arrow("good", "M120 215 L226 215", (163, 190), "captured", &[E::InboundRedirected]),
            arrow(
                "plain",
                "M65 175 C65 85 560 85 560 171",
                (312, 82),
                "not captured, in",
                &[E::InboundDirect],
            ),
            arrow("bad", "M65 255 L65 325", (65, 347), "refused, in", &[E::InboundRefused, E::GuardInbound]),
            arrow("good", "M620 215 L766 215", (692, 190), "captured", &[E::OutboundRedirected]),
            arrow("good", "M890 215 L996 215", (953, 190), "by the sidecar", &[E::ProxyDirect]),
            arrow(
                "plain",
                "M560 175 C560 85 1055 85 1055 171",
                (808, 82),
                "not captured, out",
                &[E::ExcludedDirect, E::UnmatchedDirect],
            ),
            arrow(
                "plain",
                "M545 255 C545 325 605 325 605 259",
                (575, 328),
                "inside the pod",
                &[E::LoopbackDirect],
            ),
            arrow(
                "good",
                "M800 255 C800 300 290 300 290 259",
                (350, 318),
                "sidecar to the pod",
                &[E::SelfCallRedirected],
            ),
            arrow("bad", "M515 255 C500 275 470 300 470 335", (470, 356), "refused, out", &refused),
            arrow("bad", "M1055 255 L1055 325", (1055, 347), "stopped by the guard", &guard),
        ];
        if self.attachment.policy.dns_capture {
            arrows.push(arrow(
                "good",
                "M615 250 C660 350 700 350 766 350",
                (700, 368),
                "DNS",
                &[E::DnsRedirected],
            ));
        }
        arrows
    }

    fn sockets(&self) -> Markup {
        html! {
            @if self.connections.is_empty() { p.sub { "None is open." } } @else {
                table {
                    thead { tr { th { "Application's end" } th { "Destination" } th { "Meets the sidecar at" } th { "State" } } }
                    tbody { @for one in self.connections {
                        tr {
                            td { code { (one.client) } }
                            td { @if let Some(to) = one.destination { code { (to) } } @else { "known to the socket only" } }
                            td { code { (one.sidecar) } }
                            td { (one.state) }
                        }
                    } }
                }
            }
        }
    }

    fn table_of_counters(&self) -> Markup {
        let seen = || self.counters.iter().filter(|(_, count)| *count > 0);
        html! {
            @if seen().next().is_none() { p.sub { "Nothing was counted yet." } } @else {
                table {
                    thead { tr { th { "Event" } th.number { "Count" } } }
                    tbody { @for (event, count) in seen() {
                        tr { td { code { (event.label()) } } td.number { (count) } }
                    } }
                }
            }
        }
    }

    fn table_of_links(&self) -> Markup {
        html! {
            table {
                thead { tr { th { "Hook" } th.number { "Link" } th.number { "Program" } th { "State" } } }
                tbody { @for link in self.links {
                    tr {
                        td { code { (link.hook) } }
                        td.number { (link.link_id.map_or("-".into(), |id| id.to_string())) }
                        td.number { (link.program_id.map_or("-".into(), |id| id.to_string())) }
                        @match &link.drift {
                            None => td.good { "ok" },
                            Some(drift) => td.bad { (drift) },
                        }
                    }
                } }
            }
        }
    }
}

/// Each part of the policy, its value, and where that comes from.
fn policy(policy: &Policy) -> Markup {
    let (own, usual) = (serde_json::to_value(policy), serde_json::to_value(Policy::default()));
    let (own, usual) = (own.unwrap_or_default(), usual.unwrap_or_default());
    let source = |name: &str| {
        if policy.node_defaults.contains(name) {
            "the node's defaults"
        } else if part(&own, name) == part(&usual, name) {
            "not said: the default"
        } else {
            "the pod"
        }
    };
    html! {
        table {
            thead { tr { th { "Annotation" } th { "Value" } th { "Source" } } }
            tbody {
                @for parameter in PARAMETERS {
                    tr {
                        td { code { (parameter.annotation) } }
                        td { (words(part(&own, parameter.name))) }
                        td { (source(parameter.name)) }
                    }
                }
                tr { td { "DNS capture" } td { (if policy.dns_capture { "on" } else { "off" }) } td { "ISTIO_META_DNS_CAPTURE" } }
                tr {
                    td { "sidecar" }
                    td { "uid " (policy.proxy.uid) ", gid " (policy.proxy.gid) }
                    td { "the proxy's container, or the node" }
                }
            }
        }
    }
}

/// A part of the policy: a field is called as its annotation, but for capitals.
fn part<'a>(policy: &'a Value, name: &str) -> &'a Value {
    let fields = policy.as_object().into_iter().flatten();
    let mut found = fields.filter(|(field, _)| field.eq_ignore_ascii_case(name)).map(|(_, value)| value);
    found.next().unwrap_or(&Value::Null)
}

/// A value of the policy's JSON, for people.
fn words(value: &Value) -> String {
    match value {
        Value::String(text) if text == "all" => "*".into(),
        Value::String(text) => text.clone(),
        Value::Array(items) if items.is_empty() => "none".into(),
        Value::Array(items) => items.iter().map(words).collect::<Vec<_>>().join(", "),
        Value::Object(object) => object.values().map(words).collect::<Vec<_>>().join(", "),
        other => other.to_string(),
    }
}
