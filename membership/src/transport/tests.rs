use std::net::Ipv4Addr;

use tokio::task::LocalSet;

use super::*;
use crate::secret::{Credentials, Source};

/// A peer that takes 1 MiB a second, through a small window.
#[tokio::test]
async fn what_is_small_does_not_wait_until_what_is_large_has_gone_through_a_slow_link() {
    let body = async {
        let socket =
            socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).expect("a socket");
        socket.set_recv_buffer_size(64 << 10).expect("smaller");
        socket.set_nonblocking(true).expect("set");
        let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        socket.bind(&addr.into()).expect("a free port");
        socket.listen(1).expect("listens");
        let listener = TcpListener::from_std(socket.into()).expect("nonblocking");
        let addr = listener.local_addr().expect("bound");
        let (arrived, _queue) = mpsc::channel(1);
        let wallet = Wallet::open(Source::None).expect("nothing to be read");
        let (lease, counts) = (Duration::from_secs(5), Counts::default());
        let transport =
            Transport::new(Hello::sample(2), wallet, lease, arrived, None, Bulk::default(), counts.clone());
        let (large, small) = (Msg::Refused("x".repeat(24 << 20)), Msg::Refused("small".into()));
        transport.send(Dest::Addr(addr), &large);
        let mut stream = listener.accept().await.expect("connected").0;
        let mut seen = Seen::default();
        let mut note = |first: &[u8]| seen.note(first);
        let mut met = handshake::respond(&mut stream, &Hello::sample(3), &Credentials::None, &mut note)
            .await
            .expect("met");
        let mut frames = Frames::new(MAX_STATE);
        frames.buffer().extend_from_slice(&met.rest.split());
        let (mut said, mut heard, mut taken) = (Vec::new(), Vec::new(), 0);
        let came = 'came: loop {
            if taken >= (said.len() + 1) << 20 {
                said.push(taken);
                transport.send(Dest::Addr(addr), &small);
            }
            let pause = if taken < 6 << 20 { Duration::from_millis(30) } else { Duration::ZERO };
            tokio::time::sleep(pause).await;
            frames.buffer().reserve(64 << 10);
            taken += stream.read_buf(frames.buffer()).await.expect("it is read");
            while let Some(payload) = frames.next().expect("no garbage") {
                match wire::decode::<Frame>(&payload).expect("a frame") {
                    Frame::Msg(msg) if msg == small => heard.push(taken),
                    Frame::Msg(msg) if msg == large => break 'came taken,
                    other => panic!("{other:?}"),
                }
            }
        };
        assert!(
            came > 24 << 20 && said.len() > 20 && heard.len() + 2 > said.len(),
            "{came}: {said:?} {heard:?}"
        );
        let late = said.iter().zip(&heard).map(|(said, heard)| heard - said).max();
        assert!(late < Some(1 << 20), "{late:?} bytes went before it, of {heard:?}");
        assert_eq!(counts.dropped.get(), 0);
    };
    timeout(Duration::from_secs(60), LocalSet::new().run_until(body)).await.expect("in time");
}

#[tokio::test]
async fn connections_for_bulk_that_find_no_place_are_no_strangers_that_were_displaced() {
    let body = async {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
        let addr = listener.local_addr().expect("bound");
        // Nobody takes what waits here.
        let bulk = Bulk::default();
        while {
            let stream = std::net::TcpStream::connect(addr).expect("it listens");
            let met = Met { hello: Hello::sample(1), session: Session::Open, rest: BytesMut::new() };
            drop(listener.accept().await.expect("connected"));
            bulk.accept(stream, met)
        } {}
        let (arrived, _queue) = mpsc::channel(1);
        let wallet = Wallet::open(Source::None).expect("nothing to be read");
        let (lease, counts) = (Duration::from_secs(5), Counts::default());
        let transport = Transport::new(Hello::sample(2), wallet, lease, arrived, None, bulk, counts.clone());
        transport.accept(listener);
        let mut stream = TcpStream::connect(addr).await.expect("it listens");
        let asks = Hello { bulk: true, ..Hello::sample(3) };
        handshake::initiate(&mut stream, &asks, &Credentials::None).await.expect("met");
        let closed = timeout(Duration::from_secs(10), stream.read(&mut [0])).await.expect("it is closed");
        assert!(matches!(closed, Ok(0) | Err(_)), "{closed:?}");
        let refused = counts.refused.get_or_create(&[("reason", "bulk_full")]).get();
        assert_eq!((refused, counts.overrun.get()), (1, 0));
    };
    LocalSet::new().run_until(body).await;
}
