//! The rules, what may happen at a moment, and what must hold at every one.

use stateright::{Model, Property};

use crate::state::{BPFFS, CONSUMER, Call, HOOKS, NEW, OLD, PRODUCER, Phase, State, Step};

/// A rule of the code that the model can leave out, to show that something breaks without it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rule {
    /// The lock lies on bpffs as well, not on the state directory alone.
    LockBpffs,
    /// Both locks are taken in one order by everybody.
    LockOrder,
    /// A link is detached by its last owner only.
    CountOwners,
    /// A second attachment shares the link and does not take it over.
    Share,
    /// The kernel is asked for a link before one is made.
    AskKernel,
    /// A repeated attach that fails undoes nothing.
    KeepRepeated,
    /// GC asks whether the pod runs.
    GcAsksLife,
    /// GC spares pins without a record that lead to a living pod.
    SpareUnrecorded,
    /// Attach links consumers first.
    ConsumersFirst,
    /// Detach ends producers first.
    ProducersFirst,
    /// The record is written before anything is linked.
    RecordFirst,
    /// The record is forgotten after everything else.
    ForgetLast,
}

/// All of them.
pub(crate) const RULES: [Rule; 12] = [
    Rule::LockBpffs,
    Rule::LockOrder,
    Rule::CountOwners,
    Rule::Share,
    Rule::AskKernel,
    Rule::KeepRepeated,
    Rule::GcAsksLife,
    Rule::SpareUnrecorded,
    Rule::ConsumersFirst,
    Rule::ProducersFirst,
    Rule::RecordFirst,
    Rule::ForgetLast,
];

/// A node with one pod, and calls that come in any order.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) calls: Vec<Call>,
    /// The state directory of each sandbox.
    pub(crate) dirs: [usize; 2],
    /// Whether the old sandbox is attached and runs when it begins.
    pub(crate) old_runs: bool,
    /// How many calls may be killed.
    pub(crate) deaths: u8,
    pub(crate) without: Option<Rule>,
}

/// What happens next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// A call makes its next step.
    Go(usize),
    /// A call meets an error.
    Fail(usize),
    /// A call is killed.
    Die(usize),
    /// The runtime starts a sandbox's first container.
    Start(usize),
    /// A sandbox has no process any more, and gets none.
    End(usize),
}

impl Node {
    pub(crate) fn keeps(&self, rule: Rule) -> bool {
        self.without != Some(rule)
    }

    pub(crate) fn dir(&self, call: Call) -> usize {
        match call {
            Call::Add(sandbox) | Call::Again(sandbox) | Call::Del(sandbox) => self.dirs[sandbox],
            Call::Gc(dir) | Call::LastGc(dir) => dir,
        }
    }

    /// The locks of a call, in its order.
    pub(crate) fn locks(&self, call: Call) -> Vec<usize> {
        let dir = BPFFS + 1 + self.dir(call);
        match (self.without, call) {
            (Some(Rule::LockBpffs), _) => vec![dir],
            (Some(Rule::LockOrder), Call::Del(_)) => vec![dir, BPFFS],
            _ => vec![BPFFS, dir],
        }
    }

    pub(crate) fn attach_order(&self) -> [usize; 2] {
        if self.keeps(Rule::ConsumersFirst) { [CONSUMER, PRODUCER] } else { [PRODUCER, CONSUMER] }
    }

    pub(crate) fn detach_order(&self) -> [usize; 2] {
        if self.keeps(Rule::ProducersFirst) { [PRODUCER, CONSUMER] } else { [CONSUMER, PRODUCER] }
    }

    /// Whether a call can make a step now.
    fn can_go(&self, state: &State, index: usize) -> bool {
        let call = self.calls[index];
        match state.step_of(index) {
            Step::Done => false,
            Step::Lock(which) => state.locks[self.locks(call)[usize::from(which)]].is_none(),
            Step::Begin => match call {
                Call::Add(_) | Call::Gc(_) => true,
                Call::Again(sandbox) => matches!(state.phases[sandbox], Phase::Ready | Phase::Running),
                Call::Del(sandbox) => matches!(state.phases[sandbox], Phase::Failed | Phase::Ended),
                Call::LastGc(_) => self.others_are_done(state, index),
            },
            _ => true,
        }
    }

    /// Whether all calls before this one have ended, or have no reason to begin any more.
    fn others_are_done(&self, state: &State, index: usize) -> bool {
        let quiet = |phase: &Phase| matches!(phase, Phase::Failed | Phase::Ended | Phase::Deleted);
        let ended = |other: usize| {
            let step = state.step_of(other);
            step == Step::Done || (matches!(self.calls[other], Call::Again(_)) && step == Step::Begin)
        };
        state.phases.iter().all(quiet) && (0..index).all(ended)
    }

    /// Whether calls wait for each other, and no step of any can end that.
    fn is_stuck(&self, state: &State) -> bool {
        let waits = |index: &usize| matches!(state.step_of(*index), Step::Lock(_));
        let mut all = 0..self.calls.len();
        all.clone().any(|index| waits(&index))
            && !all.any(|index| self.can_go(state, index) && state.step_of(index) != Step::Begin)
    }

    fn is_clean_at_the_end(&self, state: &State) -> bool {
        let is_last = |call: &Call| matches!(call, Call::LastGc(_));
        let over = (0..self.calls.len()).filter(|index| is_last(&self.calls[*index]));
        let over = over.map(|index| state.step_of(index)).all(|step| step == Step::Done);
        !over || nothing_is_left(state)
    }
}

fn nothing_is_left(state: &State) -> bool {
    HOOKS.iter().all(|hook| state.links(*hook) == 0 && state.names[*hook] == [None; 2])
        && state.records == [[false; 2]; 2]
}

impl Model for Node {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let mut state = State { deaths: self.deaths, failures: 1, ..State::default() };
        state.steps = vec![None; self.calls.len()];
        if self.old_runs {
            for hook in HOOKS {
                state.alive[hook][0] = true;
                state.names[hook][OLD] = Some(0);
            }
            state.records[OLD][self.dirs[OLD]] = true;
            state.phases[OLD] = Phase::Running;
        }
        vec![state]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        for (index, call) in self.calls.iter().enumerate() {
            if self.can_go(state, index) {
                actions.push(Action::Go(index));
            }
            let step = state.step_of(index);
            let under_way = !matches!(step, Step::Begin | Step::Done);
            let last = matches!(call, Call::LastGc(_));
            if under_way && state.deaths > 0 && !last {
                actions.push(Action::Die(index));
            }
            let attaches = matches!(step, Step::Look { .. } | Step::Make { .. } | Step::Name { .. });
            if attaches && state.failures > 0 {
                actions.push(Action::Fail(index));
            }
        }
        for sandbox in [OLD, NEW] {
            match state.phases[sandbox] {
                Phase::Ready => actions.extend([Action::Start(sandbox), Action::End(sandbox)]),
                Phase::Running => actions.push(Action::End(sandbox)),
                _ => {}
            }
        }
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        let mut state = state.clone();
        match action {
            Action::Go(index) => self.go(&mut state, index),
            Action::Fail(index) => {
                state.failures -= 1;
                self.fail(&mut state, index);
            }
            Action::Die(index) => {
                state.deaths -= 1;
                self.die(&mut state, index);
            }
            Action::Start(sandbox) => state.phases[sandbox] = Phase::Running,
            Action::End(sandbox) => state.phases[sandbox] = Phase::Ended,
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("a pod with processes has its links", |_, state: &State| {
                !state.populated() || HOOKS.iter().all(|hook| state.links(*hook) > 0)
            }),
            Property::always("no hook runs twice", |_, state: &State| {
                HOOKS.iter().all(|hook| state.links(*hook) < 2)
            }),
            Property::always("nothing makes an origin that nothing takes", |_, state: &State| {
                state.links(PRODUCER) == 0 || state.links(CONSUMER) > 0
            }),
            Property::always("a link without an owner has ended", |_, state: &State| {
                HOOKS.iter().all(|hook| {
                    state
                        .running(*hook)
                        .is_none_or(|link| state.owners(*hook, link) > 0 || state.is_held(*hook, link))
                })
            }),
            Property::always("nobody waits for ever", |node: &Node, state: &State| !node.is_stuck(state)),
            Property::always("after the last gc nothing is left", Node::is_clean_at_the_end),
            // The model gets to where it matters.
            Property::sometimes("both sandboxes run and share a link", |_, state: &State| {
                state.phases == [Phase::Running; 2] && state.owners(PRODUCER, 0) == 2
            }),
        ]
    }
}
