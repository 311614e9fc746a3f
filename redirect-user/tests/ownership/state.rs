//! What the model knows: links and their names, records, locks, the pod's two sandboxes, and how far each
//! call has come.

/// Two hooks stand for all: who takes a connection's origin (`original_dst`), and who makes one (`connect4`).
pub(crate) const CONSUMER: usize = 0;
pub(crate) const PRODUCER: usize = 1;
pub(crate) const HOOKS: [usize; 2] = [CONSUMER, PRODUCER];
/// The pod's sandboxes: two attachments to one cgroup.
pub(crate) const OLD: usize = 0;
pub(crate) const NEW: usize = 1;
/// The locks: bpffs, then the two state directories.
pub(crate) const BPFFS: usize = 0;
/// Links that a hook may have at one moment, with those that have ended and still have a name.
const LINKS: usize = 4;

/// Where a sandbox is in its life, as the runtime sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) enum Phase {
    /// ADD has not ended.
    #[default]
    Wanted,
    /// ADD has failed, or was killed.
    Failed,
    /// ADD has succeeded; no process yet.
    Ready,
    /// It has processes.
    Running,
    /// It has none any more.
    Ended,
    /// DEL has succeeded.
    Deleted,
}

/// The next step of a call. Another call may come in between any two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Step {
    /// It has not begun.
    Begin,
    /// `NodeLock::acquire`: the first lock, then the second.
    Lock(u8),
    /// What is to be done is found out, under the lock.
    Plan,
    /// `Place::find`: whether the kernel runs our program there.
    Look { sandbox: u8, hook: u8 },
    /// `Place::create`.
    Make { sandbox: u8, hook: u8 },
    /// `obj_pin` for a link of its own (`made`), `hard_link` for one that is shared.
    Name { sandbox: u8, hook: u8, link: u8, made: bool },
    /// `remove_pin`: how many names the link has.
    Count { sandbox: u8, hook: u8 },
    /// `remove_pin`: `link_detach`.
    Cut { sandbox: u8, hook: u8, link: u8 },
    /// `remove_pin`: the name goes.
    Unname { sandbox: u8, hook: u8 },
    /// `Attachment::forget`.
    Forget { sandbox: u8 },
    /// The locks are given back.
    Release,
    /// It has ended.
    Done,
}

/// A call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Call {
    /// The plugin's ADD of a sandbox.
    Add(usize),
    /// An attach of a sandbox that is attached: a repeated ADD, a repair, an upgrade.
    Again(usize),
    /// The plugin's DEL, which follows on its sandbox's end.
    Del(usize),
    /// GC, whose list lacks also a sandbox that runs; of a state directory.
    Gc(usize),
    /// The same after all other calls have ended.
    LastGc(usize),
}

/// Everything at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct State {
    /// Whether a link runs its program, by hook.
    pub(crate) alive: [[bool; LINKS]; 2],
    /// The link that a sandbox has a name for, by hook.
    pub(crate) names: [[Option<u8>; 2]; 2],
    /// Whether a sandbox has a record, by state directory.
    pub(crate) records: [[bool; 2]; 2],
    /// The call that holds a lock.
    pub(crate) locks: [Option<u8>; 3],
    pub(crate) phases: [Phase; 2],
    pub(crate) steps: Vec<Option<Step>>,
    /// How many calls may still be killed, and how many may still fail.
    pub(crate) deaths: u8,
    pub(crate) failures: u8,
}

impl State {
    /// The next step of a call.
    pub(crate) fn step_of(&self, call: usize) -> Step {
        self.steps[call].unwrap_or(Step::Begin)
    }

    /// The link that runs at a hook; the first, should there be two.
    pub(crate) fn running(&self, hook: usize) -> Option<u8> {
        (0..LINKS as u8).find(|link| self.alive[hook][usize::from(*link)])
    }

    pub(crate) fn links(&self, hook: usize) -> usize {
        self.alive[hook].iter().filter(|alive| **alive).count()
    }

    /// How many names a link has: what the file system counts.
    pub(crate) fn owners(&self, hook: usize, link: u8) -> usize {
        self.names[hook].iter().filter(|name| **name == Some(link)).count()
    }

    /// A number that no link has, nor a name of one that has ended.
    pub(crate) fn fresh(&self, hook: usize) -> u8 {
        let is_free = |link: &u8| !self.alive[hook][usize::from(*link)] && self.owners(hook, *link) == 0;
        (0..LINKS as u8).find(is_free).expect("two sandboxes have no more links")
    }

    /// A name goes. A link without one ends, as nothing holds it.
    pub(crate) fn unname(&mut self, hook: usize, sandbox: usize) {
        let Some(link) = self.names[hook][sandbox].take() else { return };
        if self.owners(hook, link) == 0 {
            self.alive[hook][usize::from(link)] = false;
        }
    }

    pub(crate) fn populated(&self) -> bool {
        self.phases.contains(&Phase::Running)
    }

    /// `life::runs`: the next sandbox has the cgroup in common, and its processes are in another namespace.
    pub(crate) fn runs(&self, sandbox: usize) -> bool {
        let shared = self.names[PRODUCER][sandbox].is_some_and(|link| self.owners(PRODUCER, link) > 1);
        self.populated() && (!shared || self.phases[sandbox] == Phase::Running)
    }

    /// Whether a sandbox's names lead to a link that is there.
    pub(crate) fn linked(&self, sandbox: usize) -> bool {
        let alive = |hook: &usize| {
            self.names[*hook][sandbox].is_some_and(|link| self.alive[*hook][usize::from(link)])
        };
        HOOKS.iter().any(alive)
    }

    /// Whether a link is in the hands of a call that has not named it yet.
    pub(crate) fn is_held(&self, hook: usize, link: u8) -> bool {
        self.steps.iter().flatten().any(|step| {
            matches!(step, Step::Name { hook: h, link: l, made: true, .. }
                if usize::from(*h) == hook && *l == link)
        })
    }
}
