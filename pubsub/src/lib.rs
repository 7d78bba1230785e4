//! The event bus inside every node: who else must hear that something changed?
//!
//! A topic has a current value. A [`Subscription`] yields the current value of every topic that it follows
//! first, then every later change, in the order of publication and across topics. So it does not matter when
//! one subscribes: state plus changes is always the state.
//!
//! ```
//! use pubsub::{Bus, Delivery::{Change, Current}};
//!
//! # async fn demo() {
//! let bus = Bus::new();
//! bus.publish("view/orders", 17);
//!
//! let mut views = bus.subscribe("view/orders");
//! bus.publish("view/orders", 18);
//! assert_eq!(views.next().await, Some(Current { topic: "view/orders", event: 17 }));
//! assert_eq!(views.next().await, Some(Change { topic: "view/orders", event: 18 }));
//! # }
//! ```
//!
//! **Bounds.** A subscription holds at most its limit of changes that were not taken yet ([`DEFAULT_LIMIT`]
//! unless told otherwise), besides one current value per topic. **Policy.** Publishing never waits. A change
//! that finds the limit reached empties the queue: the subscriber gets a [`Delivery::Gap`] that says how many
//! changes it missed, then the values that are current when it takes the gap, then changes again. Nothing is
//! lost silently, and a slow subscriber costs neither the publisher nor other subscribers anything.
//!
//! Topics and events are cloned once per subscription, under a lock: make them cheap, an `Arc` or a few
//! words. There is no task and no timer in here; any async runtime will do, or none
//! ([`Subscription::try_next`]).
#![forbid(unsafe_code)]

mod bus;
mod subscription;

pub use bus::{Bus, DEFAULT_LIMIT, Topics};
pub use subscription::{Delivery, Subscription, TryNextError};
