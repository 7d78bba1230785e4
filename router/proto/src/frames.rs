//! Framed MessagePack-RPC as a router must read it: where frames end, which key decides, and whom an answer is for.
//!
//! A frame is the length of a message (four bytes, big-endian) and the message: one MessagePack value as the
//! [MessagePack-RPC specification](https://github.com/msgpack-rpc/msgpack-rpc/blob/master/spec.md) has it.
//!
//! | message | is |
//! | --- | --- |
//! | `[0, msgid, method, params]` | a request; a fifth element, a map, may say more: see [`Stamp`] |
//! | `[1, msgid, error, result]` | its response; `error` is nil if all went well |
//!
//! Answers are matched by `msgid`, so they may come in any order. Nothing is decoded into objects: a scanner walks over
//! the bytes that say how long values are, once, and notes where method, parameters and key lie. Behind its envelope a message
//! goes on as it came.

mod calls;
mod path;
mod scan;
mod value;
mod write;

pub use calls::{Answered, Calls, Left, Unasked};
pub use path::{KeyPathError, KeyPaths};
pub use scan::{
    Digits, FrameError, Key, KeyError, MAX_DEPTH, MAX_FRAME, MAX_KEY_END, MAX_METHOD, Request,
    RequestScanner, Response, ResponseScanner,
};
pub use write::{
    Complaint, Refusal, Stamp, Verdict, push_complaint, push_notice, push_request, push_response,
};
