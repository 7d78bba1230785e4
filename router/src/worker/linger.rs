//! Hanging up so that the client can read what was written last.

use std::{pin::Pin, task::Poll, time::Duration};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{ClientStream, Clock, Deadline};

/// How long a client that is being sent away may be silent before it hangs up, and how long it may go on
/// sending.
const SILENCE: Duration = Duration::from_secs(1);
const IN_ALL: Duration = Duration::from_secs(10);

/// Ends our side of the connection, then throws away what still comes until the client has hung up too, for a
/// bounded time: closing a socket with unread input makes the kernel throw away what the client has not read
/// yet.
pub(crate) async fn linger(stream: &mut ClientStream, deadline: &Deadline, clock: &Clock) {
    let end = clock.now().after(IN_ALL);
    let mut shut = false;
    deadline.arm(SILENCE);
    std::future::poll_fn(|cx| {
        if !shut {
            match Pin::new(&mut *stream).poll_shutdown(cx) {
                Poll::Ready(Ok(())) => shut = true,
                Poll::Ready(Err(_)) => return Poll::Ready(()),
                Poll::Pending => {}
            }
        }
        loop {
            let mut space = [0; 4096];
            let mut buffer = ReadBuf::new(&mut space);
            match Pin::new(&mut *stream).poll_read(cx, &mut buffer) {
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() && clock.now() < end => {
                    deadline.arm(SILENCE);
                }
                Poll::Pending if !deadline.passed(cx) => return Poll::Pending,
                _ => return Poll::Ready(()),
            }
        }
    })
    .await;
}
