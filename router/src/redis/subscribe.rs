//! Channels: each lives in one RACS, as if its name were a key, so `SUBSCRIBE` and `PUBLISH` meet at its leader.
//! Patterns, and notifications of keys, come from everywhere.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
};

use router_proto::{
    RacsId,
    racs::Access,
    resp::{self, Args, Channels, Subscriptions},
};

use super::{
    Client, Next, RedisService,
    private::{Confirmation, Private, Whom},
};

/// What a client listens to, and over which connections.
#[derive(Default)]
pub(super) struct Listening {
    pub subscriptions: Subscriptions,
    /// One for each RACS that it is needed for.
    links: Vec<Option<Rc<Private>>>,
}

impl Listening {
    /// The client has gone.
    pub fn leave(self) {
        self.links.into_iter().flatten().for_each(|link| link.leave());
    }

    /// The connection to this RACS.
    fn link(&mut self, client: &Rc<Client>, racs: RacsId) -> Option<Rc<Private>> {
        let at = racs.get() as usize;
        if self.links.len() <= at {
            self.links.resize_with(at + 1, || None);
        }
        let link = &mut self.links[at];
        if link.as_ref().is_none_or(|link| link.has_ended()) {
            *link = Private::start(client, racs, true);
        }
        link.clone()
    }
}

impl RedisService {
    /// Subscribes to channels, or ends that.
    pub(super) fn subscribe(
        self: &Rc<Self>,
        client: &Rc<Client>,
        channels: Channels,
        on: bool,
        command: &[u8],
        args: &Args,
    ) -> Next {
        if !client.takes_turn(true, false) {
            return Next::Later;
        }
        self.counters.requests.add(1);
        let session = &client.session;
        let proto = session.proto();
        let mut listening = session.listening.borrow_mut();
        if args.len() == 1 {
            let names = listening.subscriptions.names(channels);
            for name in &names {
                self.subscribe_one(client, &mut listening, channels, false, name);
            }
            if names.is_empty() {
                client.answer(client.open(), |out| {
                    listening.subscriptions.confirm(channels, on, None, proto, out);
                });
            }
        }
        for at in 1..args.len() {
            self.subscribe_one(client, &mut listening, channels, on, args.get(command, at));
        }
        if listening.subscriptions.is_empty() {
            listening.links.drain(..).flatten().for_each(|link| link.finish());
        }
        drop(listening);
        session.update();
        Next::Continue
    }

    fn subscribe_one(
        &self,
        client: &Rc<Client>,
        listening: &mut Listening,
        channels: Channels,
        on: bool,
        name: &[u8],
    ) {
        let seq = client.open();
        let proto = client.session.proto();
        if on && listening.subscriptions.bytes() + name.len() > self.limits().subscriptions {
            self.refuse_command(client, seq, format_args!("ERR phalanx: too many subscriptions"));
            return;
        }
        let changed = listening.subscriptions.set(channels, name, on);
        let mut text = Vec::new();
        listening.subscriptions.confirm(channels, on, Some(name), proto, &mut text);
        if !on && !changed {
            client.answer(seq, |out| out.extend_from_slice(&text));
            return;
        }
        let everywhere = channels == Channels::Pattern
            || channels == Channels::Plain
                && (name.starts_with(b"__keyspace@") || name.starts_with(b"__keyevent@"));
        let racs = if everywhere {
            (0..self.racs() as u32).map(RacsId::new).collect()
        } else {
            vec![self.racs_of(self.partition(name))]
        };
        let links: Option<Vec<_>> = racs.into_iter().map(|racs| listening.link(client, racs)).collect();
        let Some(links) = links else {
            listening.subscriptions.set(channels, name, !on);
            self.too_many(client, seq);
            return;
        };
        let all = Rc::new(Confirmation { seq, text: RefCell::new(text), missing: Cell::new(links.len()) });
        let mut command = Vec::new();
        resp::push_subscribe(channels, on, name, &mut command);
        for link in links {
            link.push(&command, Whom::Confirmation(Rc::clone(&all)), Access::Read, 1, None);
        }
    }
}
