//! docs/rules.md against the rules and events of `redirect-common`.

use redirect_common::{Event, InboundRule, Rule};

use crate::table::{assert_same, column, rows, section};

const PLACE: &str = "docs/rules.md";

/// Number and name of each rule; numbers that a rule skips end the list.
fn numbered(label: impl Fn(u32) -> Option<&'static str>) -> Vec<(String, String)> {
    (0..).map_while(|number| Some((number.to_string(), label(number)?.to_owned()))).collect()
}

fn documented(heading: &str) -> Vec<(String, String)> {
    rows(&section(PLACE, heading)).into_iter().map(|row| (row[0].clone(), row[1].clone())).collect()
}

#[test]
fn outbound_rules_are_documented_in_their_order() {
    let real = numbered(|number| Rule::from_number(number).map(Rule::label));
    assert_eq!(documented("## Outbound"), real, "{PLACE}, Outbound: change the table to these rules (right)");
}

#[test]
fn inbound_rules_are_documented_in_their_order() {
    let real = numbered(|number| InboundRule::from_number(number).map(InboundRule::label));
    assert_eq!(documented("## Inbound"), real, "{PLACE}, Inbound: change the table to these rules (right)");
}

#[test]
fn every_event_is_documented() {
    let real = Event::ALL.iter().map(|event| event.label().to_owned()).collect();
    assert_same(
        "the table of events in docs/rules.md",
        &column(&rows(&section(PLACE, "## Counters")), 0),
        &real,
    );
}
