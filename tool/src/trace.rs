//! `redirect trace`: one record per decision, as the kernel makes it.
//!
//! The programs write records for a pod while its deadline lies in the future. A reader moves the deadline
//! once a second; should it be killed, the deadline passes by itself.
//!
//! The programs' ring buffer has one reader. The first `redirect trace` is it, and hands every record on to
//! the others, by a Unix socket in the state directory ([`share`]). When it ends, another one takes its
//! place, and what is in the buffer meanwhile waits. Records that find the buffer full are counted by the
//! programs.

mod filter;
mod print;
mod share;

use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use aya_log::EbpfLogger;
use log::{Log, Metadata, Record};
use nix::time::{ClockId, clock_gettime};
use redirect_common::Event;
use redirect_user::attach::record::Attachment;
use redirect_user::attach::tables::Tables;
use redirect_user::kernel::hook::Hook;
use redirect_user::kernel::{pins, sys};
use redirect_user::node::Node;
use redirect_user::node::lock::NodeLock;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::signal::unix::{Signal, SignalKind, signal};

use self::filter::Filter;
use self::print::Printer;
use self::share::{Follower, Hub};
use crate::output::{self, Format};
use crate::seen::Seen;

/// How far ahead the deadline is set.
const AHEAD: Duration = Duration::from_secs(3);

/// `redirect trace`
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Only this container (or a unique beginning of its id, or NAMESPACE/POD).
    id: Option<String>,
    /// The same as ID.
    #[arg(long, value_name = "NS/NAME", conflicts_with = "id")]
    pod: Option<String>,
    #[command(flatten)]
    filter: Filter,
    /// What other readers have seen in this time, too, for example 30s or 5m. Without a reader nothing is
    /// kept.
    #[arg(long, value_name = "TIME", value_parser = seconds)]
    since: Option<Duration>,
}

/// `30s`, `5m`, `1h`, or seconds.
fn seconds(text: &str) -> Result<Duration, String> {
    let (number, unit) = match text.strip_suffix(['s', 'm', 'h']) {
        Some(number) => (number, text.chars().last()),
        None => (text, None),
    };
    let number: u64 = number.parse().map_err(|_| format!("{text:?} is no time: write 30s, 5m or 1h"))?;
    let unit = match unit {
        Some('m') => 60,
        Some('h') => 3600,
        _ => 1,
    };
    number.checked_mul(unit).map(Duration::from_secs).ok_or_else(|| format!("{text:?} is too long"))
}

/// Runs until Ctrl-C or SIGTERM.
pub(crate) fn run(node: &Node, format: Format, args: &Args) -> Result<ExitCode> {
    if matches!(format, Format::Junit | Format::Short) {
        bail!("`redirect trace` prints text, json or compact");
    }
    let id = args.id.as_deref().or(args.pod.as_deref());
    let pods = output::resolve_all(node, id)?;
    let printer = Arc::new(Printer::new(format, args.filter.clone(), &pods));
    let mut reader = Reader { node, id, printer, lost: Lost::now(node, &pods) };
    reader.run(args.since, None).map(|_| ExitCode::SUCCESS)
}

/// Looks for some seconds and sums up; also, whether a signal ended it.
pub(crate) fn collect(node: &Node, id: Option<&str>, seconds: u64) -> Result<(Seen, bool)> {
    let pods = output::resolve_all(node, id)?;
    let printer = Arc::new(Printer::summing(&pods));
    let mut reader = Reader { node, id, printer: Arc::clone(&printer), lost: Lost::now(node, &pods) };
    let ended = reader.run(None, Some(Duration::from_secs(seconds)))?;
    let sums = printer.take();
    Ok((Seen { flows: sums.flows, lost: sums.lost, seconds }, ended))
}

/// What ends a reader.
struct Ended {
    interrupt: Signal,
    terminate: Signal,
    deadline: Option<tokio::time::Instant>,
    /// It was a signal.
    by_signal: bool,
}

impl Ended {
    fn watch(limit: Option<Duration>) -> Result<Ended> {
        Ok(Ended {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            deadline: limit.map(|limit| tokio::time::Instant::now() + limit),
            by_signal: false,
        })
    }

    async fn wait(&mut self) {
        let deadline = self.deadline;
        let over = async move {
            match deadline {
                Some(deadline) => tokio::time::sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.interrupt.recv() => self.by_signal = true,
            _ = self.terminate.recv() => self.by_signal = true,
            () = over => {}
        }
    }
}

/// How many records the programs could not write, by pod.
struct Lost {
    before: Vec<(u64, u64)>,
}

impl Lost {
    fn now(node: &Node, pods: &[Attachment]) -> Lost {
        let counted = |pod: &Attachment| Some((pod.cookie, lost_of(node, pod.cookie)?));
        Lost { before: pods.iter().filter_map(counted).collect() }
    }

    /// Those since the last call. A pod that was not known before counts from now on.
    fn since(&mut self, node: &Node, pods: &[Attachment]) -> u64 {
        let mut sum = 0;
        for pod in pods {
            let Some(now) = lost_of(node, pod.cookie) else { continue };
            match self.before.iter_mut().find(|(cookie, _)| *cookie == pod.cookie) {
                Some((_, before)) => sum += now.saturating_sub(std::mem::replace(before, now)),
                None => self.before.push((pod.cookie, now)),
            }
        }
        sum
    }
}

fn lost_of(node: &Node, cookie: u64) -> Option<u64> {
    let counters = Tables::open(node).ok()?.counters(cookie).ok()?;
    counters.into_iter().find(|(event, _)| *event == Event::TraceLost).map(|(_, count)| count)
}

struct Reader<'a> {
    node: &'a Node,
    id: Option<&'a str>,
    printer: Arc<Printer>,
    lost: Lost,
}

impl Reader<'_> {
    /// Reads until a signal or the limit; whether it was a signal.
    fn run(&mut self, since: Option<Duration>, limit: Option<Duration>) -> Result<bool> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let done = runtime.block_on(self.read(since, limit));
        self.tell_lost();
        done
    }

    async fn read(&mut self, since: Option<Duration>, limit: Option<Duration>) -> Result<bool> {
        let mut ended = Ended::watch(limit)?;
        let mut since = since;
        loop {
            let over = match Hub::new(self.node)? {
                Some(hub) => {
                    if since.is_some() {
                        eprintln!("redirect: no other reader was running: what was before is not known");
                    }
                    self.lead(hub, &mut ended).await?
                }
                None => self.follow(since, &mut ended).await?,
            };
            if over {
                return Ok(ended.by_signal);
            }
            // The reader that led is gone: whoever comes first takes its place.
            since = None;
        }
    }

    /// Moves the deadline of the pods that are meant, and follows pods that were attached meanwhile.
    fn tick(&mut self) -> Result<()> {
        let pods = output::resolve_all(self.node, self.id).unwrap_or_default();
        self.printer.learn(&pods);
        set_deadline(self.node, &pods, now()? + AHEAD.as_nanos() as u64)?;
        let lost = self.lost.since(self.node, &pods);
        self.printer.lost(lost);
        Ok(())
    }

    fn tell_lost(&mut self) {
        let pods = output::resolve_all(self.node, self.id).unwrap_or_default();
        let lost = self.lost.since(self.node, &pods);
        self.printer.lost(lost);
    }

    /// Reads the programs' buffer for itself and for others.
    async fn lead(&mut self, hub: Hub, ended: &mut Ended) -> Result<bool> {
        let hub = Arc::new(hub);
        let sink = Arc::new(Sink {
            printer: Arc::clone(&self.printer),
            hub: Arc::clone(&hub),
            last: Mutex::new(()),
        });
        let logger = EbpfLogger::init_from_id_with_logger(program(self.node)?, Arc::clone(&sink))
            .context("cannot open the programs' ring buffer")?;
        // SAFETY: the logger owns the ring buffer's descriptor, and nothing replaces it while `records` has
        // it.
        let mut records = unsafe { AsyncFd::register_with_interest(logger, Interest::READABLE)? };
        let mut tick = tokio::time::interval(Duration::from_secs(1));
        let done = loop {
            tokio::select! {
                _ = tick.tick() => self.tick()?,
                ready = records.readable_mut() => {
                    let mut ready = ready?;
                    ready.get_inner_mut().flush();
                    ready.clear_ready();
                }
                asked = hub.asked() => hub.welcome(asked?),
                () = ended.wait() => break Ok(true),
            }
            hub.flush();
        };
        // What was decided before the end belongs to it.
        records.get_mut().flush();
        if hub.is_alone() {
            set_deadline(self.node, &output::resolve_all(self.node, self.id).unwrap_or_default(), 0)?;
        }
        done
    }

    /// Gets the records from the reader that leads; false when that one has gone.
    async fn follow(&mut self, since: Option<Duration>, ended: &mut Ended) -> Result<bool> {
        let Some(mut follower) = Follower::new(self.node, since).await else {
            // It is about to begin or to end.
            tokio::time::sleep(Duration::from_millis(20)).await;
            return Ok(false);
        };
        let mut tick = tokio::time::interval(Duration::from_secs(1));
        loop {
            tokio::select! {
                _ = tick.tick() => self.tick()?,
                told = follower.told() => match told {
                    share::Told::Record(hex) => self.printer.show(&hex),
                    share::Told::Lost(count) => self.printer.lost(count),
                    share::Told::Over => return Ok(false),
                },
                () = ended.wait() => return Ok(true),
            }
        }
    }
}

fn program(node: &Node) -> Result<u32> {
    let pin = pins::current(node).program(Hook::Connect4);
    sys::obj_get(&pin)
        .and_then(sys::program_id)
        .with_context(|| format!("cannot open the program {}; is redirect-cni installed?", pin.display()))
}

/// `CLOCK_MONOTONIC`, what `bpf_ktime_get_ns()` reads, in nanoseconds.
fn now() -> Result<u64> {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC)?;
    Ok(time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64)
}

fn set_deadline(node: &Node, pods: &[Attachment], until: u64) -> Result<()> {
    let _lock = NodeLock::acquire(node)?;
    let mut tables = Tables::open(node)?;
    for pod in pods {
        tables.set_trace(pod.cookie, until)?;
    }
    Ok(())
}

/// Where aya-log puts the records: to this reader's own output, and to the others.
struct Sink {
    printer: Arc<Printer>,
    hub: Arc<Hub>,
    last: Mutex<()>,
}

impl Log for Sink {
    fn enabled(&self, _metadata: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let _one_at_a_time = self.last.lock();
        let hex = record.args().to_string();
        self.hub.pass_on(&hex);
        self.printer.show(&hex);
    }

    fn flush(&self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_with_their_units() {
        assert_eq!(seconds("30s"), Ok(Duration::from_secs(30)));
        assert_eq!(seconds("5m"), Ok(Duration::from_secs(300)));
        assert_eq!(seconds("7"), Ok(Duration::from_secs(7)));
        for wrong in ["", "s", "5d", "-1s", "99999999999999999999h"] {
            assert!(seconds(wrong).is_err(), "{wrong}");
        }
    }
}
