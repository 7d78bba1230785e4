//! Feature levels: a kind of command is proposed only once every member understands it.
//!
//! Members say in each heartbeat what they understand. Once all have understood more than is agreed on for a while, the
//! coordinator has the least of it agreed on, by an entry of its own; from then on nobody is admitted who understands less, so
//! whoever may ever come into the core understands all of the log. The entry that raises the level admits nobody, so the members
//! that were asked are those that there are.

use alloc::string::String;

use super::Office;
use crate::{acceptor::Acceptor, ctx::Ctx, entry::Command, plant::Plant};

impl Office {
    /// Why a node that understands so much is not admitted, if that is too little. What is under way counts already.
    pub(super) fn lacks_level(&self, acceptor: &Acceptor, level: u16) -> Option<String> {
        let under_way = self.proposal.iter().flat_map(|p| &p.entry.commands).map(|command| match command {
            Command::Level(level) => *level,
            _ => 0,
        });
        let agreed = under_way.max().unwrap_or(0).max(acceptor.state.level);
        (level < agreed).then(|| {
            alloc::format!(
                "all members of the cluster agreed on feature level {agreed}, and this build understands level {level}: start a \
                 build at least as new as theirs"
            )
        })
    }

    /// Notes since when all members understand more than what is agreed on.
    pub(super) fn watch_level(&mut self, ctx: &mut Ctx, acceptor: &Acceptor) {
        if self.understood(ctx, acceptor) <= acceptor.state.level {
            self.understood_since = None;
        } else if ctx.config.raise_after.is_some() {
            self.understood_since.get_or_insert(ctx.now);
        }
    }

    /// The command that raises the level, if it is time.
    pub(super) fn raised_level(&self, ctx: &mut Ctx, acceptor: &Acceptor) -> Option<Command> {
        let (since, after) = (self.understood_since?, ctx.config.raise_after?);
        let admits = self.queue.iter().any(|command| matches!(command, Command::Admit(_)));
        let level = self.understood(ctx, acceptor);
        if admits || level <= acceptor.state.level || ctx.now < since.after(after) {
            return None;
        }
        ctx.mark("the feature level is raised");
        Some(Command::Level(level))
    }

    /// What every member understands. One that was not heard in this office understands nothing yet.
    fn understood(&self, ctx: &Ctx, acceptor: &Acceptor) -> u16 {
        if ctx.planted(Plant::RaiseTooEarly) {
            return ctx.config.level;
        }
        let members = acceptor.state.view.members.iter();
        let level =
            |id| if id == ctx.me() { ctx.config.level } else { self.peers.get(&id).map_or(0, |p| p.level) };
        members.map(|node| level(node.id)).min().unwrap_or(0)
    }
}
