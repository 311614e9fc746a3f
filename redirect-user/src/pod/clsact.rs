//! The filters of an interface of the pod (tc(8), `clsact`), by netlink.
//!
//! A filter of ours has priority 1, so that it is asked before those of neighbours, which get their priority
//! from the kernel (0xc000 and below); and it lets them be asked after it. Where somebody has priority 1 for
//! something else, it takes the next one. It is known by its handle and its name, and only what has both is
//! ever changed or removed.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use netlink_packet_route::tc::{TcAttribute, TcBpfFlags, TcFilterBpfOption, TcHandle, TcMessage, TcOption};

use crate::kernel::filter::Filter;
use crate::pod::netns::{Error, Interface, Netns};
use crate::printable::printable;

/// The handle of our filters among those of their priority.
const HANDLE: u32 = 0x7263_6e69;
/// What their names begin with, for whoever reads `tc filter show`.
const NAME: &str = "redirect-cni";
/// Priorities that are tried, the first first.
const PRIORITIES: std::ops::RangeInclusive<u32> = 1..=4;
/// `ETH_P_ALL` in network byte order: the lower half of `tcm_info`.
const ALL_PROTOCOLS: u32 = 0x0003_u16.to_be() as u32;

/// A filter of ours as the kernel shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// The kernel's id of its program.
    pub program_id: u32,
    /// The minor number of its `classid`.
    pub index: u32,
    /// `tcm_info`: its priority and protocol.
    info: u32,
}

/// All filters of one direction of an interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filters {
    /// Ours.
    pub ours: Option<Found>,
    /// How many others there are.
    pub others: usize,
}

impl Netns {
    /// The interfaces through which packets leave the pod: all that are up, but for `lo`, bridges and the
    /// ports of bridges and bonds. What is behind those is inside the pod, or leaves it through another one.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub fn outward_interfaces(&mut self) -> Result<Vec<Interface>, Error> {
        let request = RouteNetlinkMessage::GetLink(LinkMessage::default());
        let answers = self.dump(request, "list interfaces")?;
        Ok(answers.into_iter().filter_map(|answer| outward_interface(&answer)).collect())
    }

    /// The kind of qdisc that each interface has for its filters: `clsact`, or the older `ingress`.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub fn filter_qdiscs(&mut self) -> Result<BTreeMap<u32, String>, Error> {
        let request = RouteNetlinkMessage::GetQueueDiscipline(TcMessage::with_index(0));
        let answers = self.dump(request, "list queueing disciplines")?;
        let qdiscs = answers.into_iter().filter_map(|answer| {
            let RouteNetlinkMessage::NewQueueDiscipline(message) = answer else { return None };
            let kind = kind_of(&message).filter(|kind| matches!(*kind, "clsact" | "ingress"))?.to_owned();
            Some((u32::try_from(message.header.index).ok()?, kind))
        });
        Ok(qdiscs.collect())
    }

    /// Puts our two filters on an interface, or new programs into those that are there, in one message to the
    /// kernel. `classid` is what the programs know their pod by.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn put_filters(
        &mut self,
        interface: &Interface,
        programs: [(Filter, BorrowedFd<'_>); 2],
        classid: u16,
    ) -> Result<(), Error> {
        let mut result = Ok(());
        for priority in PRIORITIES {
            let mut requests = vec![(qdisc(interface.index), NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL)];
            let filters = programs.map(|(filter, program)| {
                let message = filter_with(interface.index, filter, priority, program, classid);
                (RouteNetlinkMessage::NewTrafficFilter(message), NLM_F_ACK | NLM_F_CREATE)
            });
            requests.extend(filters);
            result = self.put(requests);
            // Somebody has this priority for one protocol, or for another kind of filter.
            if !matches!(&result, Err(error) if error.raw_os_error() == Some(libc::EINVAL)) {
                break;
            }
        }
        result
            .map_err(|source| self.failed(&format!("put the guard's filters on {}", interface.name), source))
    }

    fn put(&mut self, requests: Vec<(RouteNetlinkMessage, u16)>) -> io::Result<()> {
        let answers = self.talk(requests)?;
        for (number, answer) in answers.into_iter().enumerate() {
            match answer {
                // The qdisc is there already.
                Err(error) if number == 0 && error.raw_os_error() == Some(libc::EEXIST) => {}
                answer => drop(answer?),
            }
        }
        Ok(())
    }

    /// The filters of one direction of an interface. An interface that is gone, or has no qdisc for them, has
    /// none.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub fn filters(&mut self, interface: u32, filter: Filter) -> Result<Filters, Error> {
        let message = on(interface, filter);
        let request = RouteNetlinkMessage::GetTrafficFilter(message);
        let answers = match self.talk(vec![(request, NLM_F_DUMP)]).map(|mut answers| answers.pop()) {
            Ok(Some(Ok(answers))) => answers,
            Ok(Some(Err(error))) if gone(&error) => return Ok(Filters::default()),
            Ok(Some(Err(error))) | Err(error) => return Err(self.failed("list filters", error)),
            Ok(None) => return Ok(Filters::default()),
        };
        let mut filters = Filters::default();
        for answer in answers {
            let RouteNetlinkMessage::NewTrafficFilter(message) = answer else { continue };
            match ours(&message) {
                Some(found) => filters.ours = Some(found),
                // The head of a priority is listed too; it has no handle.
                None if u32::from(message.header.handle) != 0 => filters.others += 1,
                None => {}
            }
        }
        Ok(filters)
    }

    /// Takes our filters off an interface, and its qdisc where `made` says that it was ours and no filter is
    /// left in it.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn remove_filters(&mut self, interface: u32, made: bool) -> Result<(), Error> {
        let (mut requests, mut others) = (Vec::new(), 0);
        for filter in Filter::ALL {
            let filters = self.filters(interface, filter)?;
            others += filters.others;
            if let Some(found) = filters.ours {
                let mut message = on(interface, filter);
                message.header.handle = HANDLE.into();
                message.header.info = found.info;
                message.attributes = vec![TcAttribute::Kind("bpf".into())];
                requests.push((RouteNetlinkMessage::DelTrafficFilter(message), NLM_F_ACK));
            }
        }
        if made && others == 0 {
            let RouteNetlinkMessage::NewQueueDiscipline(message) = qdisc(interface) else { return Ok(()) };
            requests.push((RouteNetlinkMessage::DelQueueDiscipline(message), NLM_F_ACK));
        }
        if requests.is_empty() {
            return Ok(());
        }
        let answers =
            self.talk(requests).map_err(|source| self.failed("remove the guard's filters", source))?;
        for answer in answers {
            match answer {
                Err(error) if !gone(&error) => return Err(self.failed("remove the guard's filters", error)),
                _ => {}
            }
        }
        Ok(())
    }
}

/// "No such filter", "no such qdisc", "no such interface".
fn gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENODEV | libc::EINVAL))
}

fn qdisc(interface: u32) -> RouteNetlinkMessage {
    let mut message = TcMessage::with_index(interface as i32);
    message.header.parent = TcHandle::CLSACT;
    message.header.handle = TcHandle { major: u16::MAX, minor: 0 };
    message.attributes = vec![TcAttribute::Kind("clsact".into())];
    RouteNetlinkMessage::NewQueueDiscipline(message)
}

/// A message about the filters of a direction.
fn on(interface: u32, filter: Filter) -> TcMessage {
    let mut message = TcMessage::with_index(interface as i32);
    let minor = match filter {
        Filter::Egress => TcHandle::MIN_EGRESS,
        Filter::Ingress => TcHandle::MIN_INGRESS,
    };
    message.header.parent = TcHandle { major: u16::MAX, minor };
    message
}

fn filter_with(
    interface: u32,
    filter: Filter,
    priority: u32,
    program: BorrowedFd<'_>,
    classid: u16,
) -> TcMessage {
    let mut message = on(interface, filter);
    message.header.handle = HANDLE.into();
    message.header.info = priority << 16 | ALL_PROTOCOLS;
    let options = [
        TcFilterBpfOption::ProgFd(program.as_raw_fd() as u32),
        TcFilterBpfOption::ProgName(format!("{NAME}:[{filter}]")),
        TcFilterBpfOption::ClassId(TcHandle { major: 0, minor: classid }),
        TcFilterBpfOption::Flags(TcBpfFlags::DirectAction),
    ];
    message.attributes = vec![
        TcAttribute::Kind("bpf".into()),
        TcAttribute::Options(options.into_iter().map(TcOption::Bpf).collect()),
    ];
    message
}

fn kind_of(message: &TcMessage) -> Option<&str> {
    message.attributes.iter().find_map(|attribute| match attribute {
        TcAttribute::Kind(kind) => Some(kind.as_str()),
        _ => None,
    })
}

fn ours(message: &TcMessage) -> Option<Found> {
    if u32::from(message.header.handle) != HANDLE || kind_of(message) != Some("bpf") {
        return None;
    }
    let options: Vec<&TcFilterBpfOption> = message
        .attributes
        .iter()
        .filter_map(|attribute| match attribute {
            TcAttribute::Options(options) => Some(options),
            _ => None,
        })
        .flatten()
        .filter_map(|option| match option {
            TcOption::Bpf(option) => Some(option),
            _ => None,
        })
        .collect();
    let named = options
        .iter()
        .any(|option| matches!(option, TcFilterBpfOption::ProgName(name) if name.starts_with(NAME)));
    let number = |pick: fn(&TcFilterBpfOption) -> Option<u32>| options.iter().find_map(|option| pick(option));
    named.then(|| Found {
        program_id: number(|option| match option {
            TcFilterBpfOption::ProgId(id) => Some(*id),
            _ => None,
        })
        .unwrap_or(0),
        index: number(|option| match option {
            TcFilterBpfOption::ClassId(handle) => Some(handle.minor.into()),
            _ => None,
        })
        .unwrap_or(0),
        info: message.header.info,
    })
}

fn outward_interface(message: &RouteNetlinkMessage) -> Option<Interface> {
    const LOOPBACK: u32 = 1;
    let RouteNetlinkMessage::NewLink(message) = message else { return None };
    let (index, up) = (message.header.index, message.header.flags.contains(LinkFlags::Up));
    let inner = message.attributes.iter().any(|attribute| match attribute {
        LinkAttribute::Controller(master) => *master != 0,
        LinkAttribute::LinkInfo(infos) => {
            infos.iter().any(|info| matches!(info, LinkInfo::Kind(InfoKind::Bridge)))
        }
        _ => false,
    });
    let name = message.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(printable(name)),
        _ => None,
    })?;
    (index != LOOPBACK && up && !inner).then_some(Interface { index, name })
}
