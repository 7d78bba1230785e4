//! View-synchronous multicast inside one group, as a pure machine.
//!
//! Membership says which views a group goes through; this machine makes the members of one view a place in which
//! messages mean the same to everybody: whoever goes from one view to the next together with others has delivered the
//! same messages as they have before it.
//!
//! # How it works
//!
//! *Inside a view.* A sender gives its messages to all members itself ([`Data`](Frame::Data), numbered). The first member
//! of the view sequences those of the classes `ordered` and `safe`: it says in which order, as runs of "the next k of
//! rank r" ([`Order`](Frame::Order)), so that what waited together costs one frame. Everybody says what it holds
//! ([`Ack`](Frame::Ack)); a safe message is delivered once all members hold it and its place.
//!
//! *Between views* (after Keidar and Khazan, "A client-server approach to virtually synchronous group multicast", ICDCS
//! 2000: views come from a membership service, members agree on the closing of the old view among themselves). Who hears
//! of a new view sends nothing more in its old one, and tells all members of the new one what it holds
//! ([`Sync`](Frame::Sync), the same to everybody). Who has that of all members knows the *cut*: the most that any of
//! those who come along holds. Members give each other what is missing, everybody delivers up to the cut, and installs.
//! A newer view restarts the exchange. If somebody has installed a view already that others were overtaken in, it
//! brings them along ([`Cut`](Frame::Cut)) before the newer one can be closed, so that survivors do not part. In a view of more
//! than [`MANY`] members each tells the first one alone, which passes on what it is told ([`Said`](Frame::Said)).
//!
//! # What the links must do
//!
//! Frames between two members come in order and are not lost while their connection lasts;
//! [`Input::Linked`] tells both of a new one, and each says again what the other may have missed. All members have a connection
//! with the first one. That any two others have one is needed only once something is to be sent; whoever has something to
//! send to a member without one sees to it. A member of a build that passes nothing on is told of by [`Input::Plain`], before anything
//! is sent to it.
//!
//! # Map
//!
//! | file | idea |
//! | --- | --- |
//! | `machine.rs` | inputs, outputs, sending and acknowledging inside a view |
//! | `flush.rs` | from one view to the next |
//! | `relay.rs` | in a large view the first member passes on what the others say about its closing |
//! | `meet.rs` | members go on until who is new is there |
//! | `state.rs`, `give.rs` | who comes to a group with state gets it; what the one who gives it does |
//! | `store.rs` | the messages of one view: who holds what, what may be delivered |
//! | `pace.rs` | how much a sender has under way |
//! | `slow.rs` | who makes others wait is timed and reported |
//! | `order.rs` | the sequence of a view's ordered messages |
//! | `frame.rs` | frames and their encoding |
//! | `plant.rs` | deliberate bugs for testing the tests |
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;
#[cfg(test)]
extern crate std;

mod flush;
mod frame;
mod give;
mod machine;
mod meet;
mod order;
mod pace;
pub mod plant;
mod relay;
mod slow;
mod state;
mod store;

pub use frame::{
    Ack, Class, Cut, Data, Frame, FrameError, OPTIONAL, Order, Run, Said, Standing, Sync, Transfer,
};
pub use machine::{Config, Input, Message, Multicast, Output, View};
pub use plant::Plant;
pub use relay::MANY;
