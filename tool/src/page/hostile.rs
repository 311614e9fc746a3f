//! Names that pods and peers choose, on the pages: the page has the elements and attributes that it has for
//! harmless names, and shows the name as text.

use std::collections::BTreeMap;

use redirect_common::Event;
use redirect_user::attach::record::Attachment;
use redirect_user::connections::Connection;
use redirect_user::explain::planned;
use redirect_user::ids::{AttachmentId, PodRef};
use redirect_user::inspect::{Drift, LinkState};
use redirect_user::policy::Policy;
use redirect_user::printable::printable;

use super::{mesh, pod};
use crate::seen::{Flow, Seen};

/// What somebody could try.
fn tricks() -> Vec<String> {
    let short = [
        "<script>alert(1)</script>",
        "\"><img src=x onerror=alert(1)>",
        "\" onload=\"alert(1)",
        "' onload='alert(1)",
        "`onload=alert(1)",
        "x></title></svg></style><script>alert(1)</script>",
        "--><!-- ]]> <![CDATA[ <?php ?> {{7*7}} ${7*7}",
        "&lt;script&gt; &amp;amp; &#60;b&#62; &quot; & &&",
        "javascript:alert(1) url(//x) expression(1)",
        "a\u{0}b\u{1b}[2J\r\n\t\u{7f}\u{9b}31m\u{202e}\u{2028}\u{feff}c",
    ];
    let long = ["<\"'&>".repeat(1_000), "\u{1b}".repeat(1_000), "x".repeat(10_000)];
    short.into_iter().map(str::to_owned).chain(long).collect()
}

/// The page of a pod with one text in every place that is not ours.
fn page_of_pod(text: &str, named: bool) -> String {
    let policy = Policy {
        exclude_interfaces: vec![text.to_owned()],
        node_defaults: [text.to_owned()].into(),
        dns_capture: true,
        ..Policy::default()
    };
    let pod = PodRef { namespace: text.to_owned(), name: text.to_owned(), uid: Some(text.to_owned()) };
    let attachment = Attachment {
        id: AttachmentId { container_id: text.to_owned(), ifname: text.to_owned() },
        pod: named.then_some(pod),
        network: Some(text.to_owned()),
        cgroup: text.into(),
        netns: text.into(),
        boot_id: text.to_owned(),
        addresses: vec!["192.0.2.1".parse().unwrap(), "fd00::1".parse().unwrap()],
        ..planned(policy)
    };
    let drift = Some(Drift::FilterGone { filter: "guard_egress", interface: text.to_owned() });
    let links = [LinkState { hook: "connect4", link_id: Some(1), program_id: None, drift }];
    let at = |text: &str| text.parse().unwrap();
    let connections = [Connection {
        client: at("192.0.2.1:40000"),
        destination: Some(at("[fd00::2]:80")),
        sidecar: at("127.72.9.41:15001"),
        state: "ESTAB",
    }];
    let (health, counters) = (format!("an error says {text}"), [(Event::OutboundRedirected, 1)]);
    let about = pod::About {
        attachment: &attachment,
        health: &health,
        links: &links,
        counters: &counters,
        connections: &connections,
    };
    about.draw(None).into_string()
}

/// The page of the node's mesh with one text as a source, a destination and both.
fn page_of_mesh(text: &str) -> String {
    let flow =
        |from: &str, to: &str, verdict| Flow { from: from.into(), to: to.into(), verdict, rule: "all" };
    let flows = [
        (flow(text, "192.0.2.1:80", "direct"), 3),
        (flow("shop/web", text, "to-outbound"), 2),
        (flow(text, text, "dropped"), 1),
    ];
    mesh::draw(&Seen { flows: BTreeMap::from(flows), lost: 0, seconds: 1 }, Some(5)).into_string()
}

/// What a browser makes of a page.
#[derive(Default)]
struct Read {
    /// Elements with the names of their attributes, in order.
    elements: Vec<String>,
    /// Texts and values of attributes, as they are shown.
    words: Vec<String>,
    /// Texts inside `text` elements, which have no room for more than a line.
    drawn: Vec<String>,
}

/// Reads a page by the rules of HTML for tags, attributes in double quotes, and text. What else a browser
/// would read its own way is a failure.
fn read(page: &str) -> Read {
    let mut read = Read::default();
    let mut rest = page.strip_prefix("<!DOCTYPE html>").expect("the page's first words");
    while !rest.is_empty() {
        let (text, behind) = rest.split_once('<').expect("the page ends with a tag");
        read.text(text);
        let Some(end) = behind.strip_prefix('/') else {
            rest = read.tag(behind);
            continue;
        };
        let (name, behind) = end.split_once('>').expect("an end tag");
        assert!(name.bytes().all(|byte| byte.is_ascii_alphanumeric()), "{name:?}");
        read.elements.push(format!("/{name}"));
        rest = behind;
    }
    read
}

impl Read {
    fn text(&mut self, text: &str) {
        let text = unescaped(text);
        if self.elements.last().is_some_and(|element| element.split(' ').next() == Some("text")) {
            self.drawn.push(text.clone());
        }
        self.words.push(text);
    }

    /// A start tag, from its name on; what follows it.
    fn tag<'a>(&mut self, tag: &'a str) -> &'a str {
        let end = tag.find([' ', '>']).expect("a tag ends");
        let (name, mut rest) = tag.split_at(end);
        assert!(!name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric()), "{name:?}");
        let mut element = name.to_owned();
        while let Some(attribute) = rest.strip_prefix(' ') {
            let (key, value) = attribute.split_once("=\"").expect("a value in double quotes");
            assert!(key.bytes().all(|byte| byte.is_ascii_alphabetic() || byte == b'-'), "{key:?}");
            let (value, behind) = value.split_once('"').expect("the value ends");
            element.push_str(&format!(" {key}"));
            self.words.push(unescaped(value));
            rest = behind;
        }
        let rest = rest.strip_prefix('>').expect("the tag ends");
        self.elements.push(element);
        // Its content is ours, and no browser unescapes it.
        if name == "style" { rest.split_once("</style>").expect("the style ends").1 } else { rest }
    }
}

/// Text with its references resolved, as far as they are those of an escaper.
fn unescaped(text: &str) -> String {
    assert!(!text.contains(['<', '>', '"']), "not escaped: {text:?}");
    assert!(!text.contains(|c: char| c.is_control()), "a control character: {text:?}");
    let mut parts = text.split('&');
    let mut whole = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (name, behind) = part.split_once(';').expect("a reference ends");
        whole.push(match name {
            "lt" => '<',
            "gt" => '>',
            "quot" => '"',
            "amp" => '&',
            other => panic!("the reference {other:?} is not an escaper's"),
        });
        whole.push_str(behind);
    }
    whole
}

/// The same elements as for a harmless name, and the name in at least so many places.
fn assert_is_text(page: impl Fn(&str) -> String, places: usize) {
    let harmless = read(&page("harmless"));
    for trick in tricks() {
        let beginning: String = trick.chars().take(40).collect();
        let hostile = read(&page(&trick));
        assert_eq!(hostile.elements, harmless.elements, "{beginning:?} changes the page");
        let shown = printable(&trick);
        let count = hostile.words.iter().filter(|words| words.contains(&shown)).count();
        assert!(count >= places, "{beginning:?} is shown in {count} places");
        for drawn in hostile.drawn {
            assert!(drawn.chars().count() <= 80, "{beginning:?} leaves the picture");
        }
    }
}

#[test]
fn what_a_pod_is_called_is_text_on_its_page() {
    // The title, the heading, the state, the policy and the links.
    assert_is_text(|text| page_of_pod(text, true), 5);
    assert_is_text(|text| page_of_pod(text, false), 5);
}

#[test]
fn what_pods_and_peers_are_called_is_text_on_the_page_of_the_mesh() {
    // Three flows: the label and the title of each arrow, and the table.
    assert_is_text(page_of_mesh, 10);
}
