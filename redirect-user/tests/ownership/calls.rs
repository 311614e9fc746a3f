//! The calls, step by step: what each step of ADD, DEL, a repeated attach and GC changes.

use crate::model::{Node, Rule};
use crate::state::{Call, HOOKS, NEW, OLD, Phase, State, Step};

impl Node {
    /// Makes one step of a call.
    pub(crate) fn go(&self, state: &mut State, index: usize) {
        let call = self.calls[index];
        let next = match state.step_of(index) {
            Step::Begin => {
                if let (Call::Add(sandbox), true) = (call, self.keeps(Rule::RecordFirst)) {
                    state.records[sandbox][self.dir(call)] = true;
                }
                Step::Lock(0)
            }
            Step::Lock(which) => {
                let locks = self.locks(call);
                state.locks[locks[usize::from(which)]] = Some(index as u8);
                if usize::from(which) + 1 < locks.len() { Step::Lock(which + 1) } else { Step::Plan }
            }
            Step::Plan => self.plan(state, call),
            step @ (Step::Look { .. } | Step::Make { .. } | Step::Name { .. }) => {
                match self.attach(state, call, step) {
                    Some(next) => next,
                    None => return self.fail(state, index),
                }
            }
            step @ (Step::Count { .. } | Step::Cut { .. } | Step::Unname { .. }) => {
                self.detach(state, call, step)
            }
            Step::Forget { sandbox } => {
                state.records[usize::from(sandbox)][self.dir(call)] = false;
                self.after_forget(call, sandbox)
            }
            Step::Release | Step::Done => {
                self.end(state, index);
                Step::Done
            }
        };
        state.steps[index] = Some(next);
    }

    /// One step of `links::link`; nothing where it fails.
    fn attach(&self, state: &mut State, call: Call, step: Step) -> Option<Step> {
        Some(match step {
            Step::Look { sandbox, hook } => match state.running(hook.into()) {
                Some(link) if self.keeps(Rule::AskKernel) => Step::Name { sandbox, hook, link, made: false },
                _ => Step::Make { sandbox, hook },
            },
            Step::Make { sandbox, hook } => {
                state.unname(hook.into(), sandbox.into());
                let link = state.fresh(hook.into());
                state.alive[usize::from(hook)][usize::from(link)] = true;
                Step::Name { sandbox, hook, link, made: true }
            }
            Step::Name { sandbox, hook, link, made } => {
                // The name to share may have gone meanwhile, where calls do not exclude each other.
                if !made && state.owners(hook.into(), link) == 0 {
                    return None;
                }
                self.name(state, sandbox.into(), hook.into(), link);
                self.after_link(state, call, sandbox, hook)
            }
            _ => unreachable!("{step:?}"),
        })
    }

    /// One step of `links::remove_pins`.
    fn detach(&self, state: &mut State, call: Call, step: Step) -> Step {
        match step {
            Step::Count { sandbox, hook } => match state.names[usize::from(hook)][usize::from(sandbox)] {
                Some(link) if state.owners(hook.into(), link) == 1 || !self.keeps(Rule::CountOwners) => {
                    Step::Cut { sandbox, hook, link }
                }
                Some(_) => Step::Unname { sandbox, hook },
                None => self.after_unlink(call, sandbox, hook),
            },
            Step::Cut { sandbox, hook, link } => {
                state.alive[usize::from(hook)][usize::from(link)] = false;
                Step::Unname { sandbox, hook }
            }
            Step::Unname { sandbox, hook } => {
                state.unname(hook.into(), sandbox.into());
                self.after_unlink(call, sandbox, hook)
            }
            _ => unreachable!("{step:?}"),
        }
    }

    /// What a call does under its locks.
    fn plan(&self, state: &State, call: Call) -> Step {
        let order = self.attach_order();
        match call {
            Call::Add(sandbox) => Step::Look { sandbox: sandbox as u8, hook: order[0] as u8 },
            // Who repairs goes through the records.
            Call::Again(sandbox) if state.records[sandbox][self.dir(call)] => {
                Step::Look { sandbox: sandbox as u8, hook: order[0] as u8 }
            }
            Call::Again(_) => Step::Release,
            Call::Del(sandbox) => self.undo(sandbox as u8),
            Call::Gc(dir) | Call::LastGc(dir) => {
                let goes = |sandbox: &usize| self.collects(state, dir, *sandbox);
                [OLD, NEW].iter().find(|s| goes(s)).map_or(Step::Release, |s| self.undo(*s as u8))
            }
        }
    }

    /// `gc::collect`, for one sandbox.
    fn collects(&self, state: &State, dir: usize, sandbox: usize) -> bool {
        let named = HOOKS.iter().any(|hook| state.names[*hook][sandbox].is_some());
        if state.records[sandbox][dir] {
            // The runtime lists what it is about to start. One that runs it may have lost.
            let listed = matches!(state.phases[sandbox], Phase::Wanted | Phase::Ready);
            let stays = listed || (self.keeps(Rule::GcAsksLife) && state.runs(sandbox));
            return !stays;
        }
        named && !(self.keeps(Rule::SpareUnrecorded) && state.linked(sandbox))
    }

    /// The first step of `detach::undo`.
    fn undo(&self, sandbox: u8) -> Step {
        if self.keeps(Rule::ForgetLast) {
            Step::Count { sandbox, hook: self.detach_order()[0] as u8 }
        } else {
            Step::Forget { sandbox }
        }
    }

    fn name(&self, state: &mut State, sandbox: usize, hook: usize, link: u8) {
        if state.names[hook][sandbox] != Some(link) {
            state.unname(hook, sandbox);
        }
        if !self.keeps(Rule::Share) {
            state.names[hook] = [None; 2];
        }
        state.names[hook][sandbox] = Some(link);
    }

    fn after_link(&self, state: &mut State, call: Call, sandbox: u8, hook: u8) -> Step {
        let [first, second] = self.attach_order();
        if usize::from(hook) == first {
            return Step::Look { sandbox, hook: second as u8 };
        }
        if matches!(call, Call::Add(_)) {
            state.records[usize::from(sandbox)][self.dir(call)] = true;
        }
        Step::Release
    }

    fn after_unlink(&self, call: Call, sandbox: u8, hook: u8) -> Step {
        let [first, second] = self.detach_order();
        match usize::from(hook) == first {
            true => Step::Count { sandbox, hook: second as u8 },
            false if self.keeps(Rule::ForgetLast) => Step::Forget { sandbox },
            false => self.removed(call),
        }
    }

    fn after_forget(&self, call: Call, sandbox: u8) -> Step {
        if self.keeps(Rule::ForgetLast) {
            self.removed(call)
        } else {
            Step::Count { sandbox, hook: self.detach_order()[0] as u8 }
        }
    }

    /// After one attachment is removed: GC looks for the next.
    fn removed(&self, call: Call) -> Step {
        if matches!(call, Call::Gc(_) | Call::LastGc(_)) { Step::Plan } else { Step::Release }
    }

    /// A call meets an error: ADD takes back what it has done, a repeated attach leaves all as it is.
    pub(crate) fn fail(&self, state: &mut State, index: usize) {
        drop_held(state, index);
        let next = match self.calls[index] {
            Call::Add(sandbox) => {
                state.phases[sandbox] = Phase::Failed;
                self.undo(sandbox as u8)
            }
            Call::Again(sandbox) if !self.keeps(Rule::KeepRepeated) => self.undo(sandbox as u8),
            _ => Step::Release,
        };
        state.steps[index] = Some(next);
    }

    /// The kernel gives back what a killed call had. The runtime does not repeat a DEL that was killed: that
    /// is what GC is for.
    pub(crate) fn die(&self, state: &mut State, index: usize) {
        drop_held(state, index);
        release(state, index);
        if let Call::Add(sandbox) = self.calls[index] {
            state.phases[sandbox] = Phase::Failed;
        }
        state.steps[index] = Some(Step::Done);
    }

    fn end(&self, state: &mut State, index: usize) {
        release(state, index);
        match self.calls[index] {
            Call::Add(sandbox) if state.phases[sandbox] == Phase::Wanted => {
                state.phases[sandbox] = Phase::Ready;
            }
            Call::Del(sandbox) => state.phases[sandbox] = Phase::Deleted,
            _ => {}
        }
    }
}

/// A link that a call has made and not named goes with it.
fn drop_held(state: &mut State, index: usize) {
    if let Step::Name { hook, link, made: true, .. } = state.step_of(index) {
        state.alive[usize::from(hook)][usize::from(link)] = false;
    }
}

fn release(state: &mut State, index: usize) {
    for lock in &mut state.locks {
        lock.take_if(|holder| usize::from(*holder) == index);
    }
}
