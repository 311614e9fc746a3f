//! What `redirect explain` foretells about a connection in a pod of ours, from the attachment's record alone;
//! it must be what then happens.

use harness::{Node, Pod};
use nix::net::if_::if_nametoindex;
use redirect_common::Protocol;
use redirect_user::attach::record::{self, Attachment};
use redirect_user::explain::{self, Question};

use crate::outcome::{Outcome, Server};
use crate::scenario::{Connection, Who};

/// Where a connection from outside arrives.
#[derive(Clone, Copy, Debug)]
struct Interfaces {
    eth0: u32,
    eth1: u32,
    /// Comes later, if at all.
    eth2: Option<u32>,
}

/// A pod as its attachment's record has it.
#[derive(Debug)]
pub(crate) struct Record {
    attachment: Attachment,
    interfaces: Interfaces,
}

impl Record {
    /// The record of an attached pod.
    pub(crate) fn of(node: &Node, pod: &Pod) -> Record {
        let places = redirect_user::node::Node::new(node.bpffs(), node.state_dir());
        let mut records = record::of_container(&places, pod.name()).expect("the pod's record is readable");
        let index = |name: &str| pod.netns().run(|| if_nametoindex(name).ok());
        let there = |name: &str| index(name).expect("the interface is there");
        Record {
            attachment: records.pop().expect("the pod is attached"),
            interfaces: Interfaces { eth0: there("eth0"), eth1: there("eth1"), eth2: index("eth2") },
        }
    }

    /// The verdict about a connection.
    fn verdict(&self, connection: &Connection) -> String {
        let tcp = connection.kind.is_tcp();
        if connection.who != Who::Peer {
            let user = connection.who.user();
            let protocol = if tcp { Protocol::Tcp } else { Protocol::Udp };
            let (dst, src) = (connection.to, connection.source);
            let question = Question { protocol, dst, src, uid: user.uid, gid: user.gid };
            return explain::outbound(&self.attachment, &question).verdict;
        }
        if !tcp {
            return "direct".to_owned();
        }
        let among = |ips: [&str; 2]| ips.map(|ip| ip.parse()).contains(&Ok(connection.to.ip()));
        let interface = match self.interfaces {
            Interfaces { eth1, .. } if among(["10.88.0.2", "fd88::2"]) => eth1,
            Interfaces { eth2: Some(eth2), .. } if among(["10.99.0.2", "fd99::2"]) => eth2,
            Interfaces { eth0, .. } => eth0,
        };
        explain::inbound(&self.attachment, connection.to.port(), Some(interface)).verdict
    }

    /// Whether it came as foretold.
    pub(crate) fn foretold(&self, connection: &Connection, outcome: &Outcome) -> bool {
        let verdict = self.verdict(connection);
        let Outcome::Reached(reached) = outcome else {
            // Refused, whoever it was; but a packet to the sidecar never gets lost.
            return verdict == "direct" || matches!(outcome, Outcome::Failed(_));
        };
        let redirected = reached.original_dst.as_ref().is_some_and(Result::is_ok);
        if reached.server == Server::Sidecar(connection.to.port()) {
            // The sidecar's own port was dialled: redirected or not, it comes to the same.
            return true;
        }
        verdict
            == match reached.server {
                Server::Sidecar(15001) if redirected => "to outbound (15001)",
                Server::Sidecar(_) if redirected => "to inbound (15006)",
                Server::DnsProxy => "to dns (15053)",
                Server::Sidecar(_) | Server::Pod(_) | Server::Peer(_) => "direct",
            }
    }
}
