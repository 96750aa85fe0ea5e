//! Bodies that come after their heads. Who asks is known before anything of them is read: strangers are told so, and what they send
//! takes no room.

use super::Given;
use super::head::Chat;
use crate::access::Role;
use crate::gateway::body::{DRAIN_BYTES, DRAIN_TIME, TIMES, Times, broke_off};
use crate::gateway::middleware::access;
use crate::gateway::{Gateway, drain};
use crate::types::Failure;
use crate::types::soon::{Waits, soon};
use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

thread_local!(static PIECES: Waits = const { Waits::new() });

/// What a request brings whose body is still to come.
pub(super) async fn arrive(stream: &mut TcpStream, buffer: &mut BytesMut, gateway: &Gateway, chat: &Chat) -> Given {
    let caller = access::caller(gateway, &chat.headers, Role::App).await;
    let mut cut = gateway.cut.clone();
    let body = match &caller {
        Err(_) => Ok(Bytes::new()),
        Ok(_) => tokio::select! {
            body = read(stream, buffer, chat.body, TIMES) => body,
            _ = cut.wait_for(|cut| *cut) => Err(drain::shutting_down()),
        },
    };
    Given { caller: Some(Box::new(caller)), body }
}

async fn read(stream: &mut TcpStream, buffer: &mut BytesMut, length: usize, times: Times) -> Result<Bytes, Failure> {
    let reading = async {
        while buffer.len() < length {
            buffer.reserve(length - buffer.len());
            let read = soon(&PIECES, tokio::time::timeout(times.silence, stream.read_buf(buffer)));
            let read = read.await.map_err(|_| times.too_silent())?;
            if read.map_err(broke_off)? == 0 {
                return Err(broke_off("the connection was closed"));
            }
        }
        // With nothing behind it, whoever has the body last has it alone.
        let body = if buffer.len() == length { std::mem::take(buffer) } else { buffer.split_to(length) };
        Ok(body.freeze())
    };
    tokio::time::timeout(times.whole, reading).await.unwrap_or_else(|_| Err(times.too_long()))
}

/// Ends a connection whose request was not read whole. What still comes is thrown away, so that the client reads the reply instead of a
/// reset.
pub(super) async fn leave(stream: &mut TcpStream, buffer: &mut BytesMut) {
    let leaving = async {
        stream.shutdown().await?;
        let mut thrown_away = 0;
        while thrown_away < DRAIN_BYTES {
            buffer.clear();
            buffer.reserve(super::READ_BYTES);
            match stream.read_buf(buffer).await? {
                0 => break,
                read => thrown_away += read,
            }
        }
        Ok::<_, std::io::Error>(())
    };
    // Past this time, or when it left already, the client gets its reset.
    let _ = tokio::time::timeout(DRAIN_TIME, leaving).await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Code;
    use std::time::Duration;
    use tokio::net::TcpListener;

    /// What becomes of a body of ten bytes that is sent like this; the client stays as long as what it returns.
    async fn read_from(times: Times, send: impl AsyncFnOnce(TcpStream) -> Option<TcpStream>) -> Result<Bytes, Failure> {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let client = TcpStream::connect(listener.local_addr().expect("an address")).await.expect("connects");
        let (mut stream, _) = listener.accept().await.expect("a connection");
        let mut buffer = BytesMut::from(&b"01"[..]);
        let reading = async { tokio::time::timeout(Duration::from_secs(20), read(&mut stream, &mut buffer, 10, times)).await };
        let (read, _client) = tokio::join!(reading, send(client));
        read.expect("it ends")
    }

    async fn sends(bytes: &[u8], mut client: TcpStream) -> TcpStream {
        client.write_all(bytes).await.expect("sent");
        client
    }

    #[tokio::test]
    async fn a_body_that_does_not_come_is_told() {
        let times = |silence_ms, whole_ms| Times { silence: Duration::from_millis(silence_ms), whole: Duration::from_millis(whole_ms) };
        let told = |read: Result<Bytes, Failure>| {
            let failure = read.expect_err("it is refused");
            assert_eq!(failure.code(), Code::INVALID_REQUEST);
            failure.to_string()
        };
        let silent = read_from(times(50, 60_000), async |client| Some(sends(b"234", client).await));
        assert!(told(silent.await).contains("stopped"));
        let dripping = read_from(times(60_000, 100), async |mut client| {
            for _ in 0..4 {
                client = sends(b"x", client).await;
                tokio::time::sleep(Duration::from_millis(30)).await;
            }
            Some(client)
        });
        assert!(told(dripping.await).contains("did not arrive"));
        let left = read_from(times(60_000, 60_000), async |client| {
            drop(sends(b"234", client).await);
            None
        });
        assert!(told(left.await).contains("broke off"));
        let whole = read_from(times(60_000, 60_000), async |client| Some(sends(b"23456789", client).await));
        assert_eq!(whole.await.expect("a body"), "0123456789");
    }
}
