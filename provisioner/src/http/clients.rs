//! How many connections there may be: on one listener, and of one client.
//!
//! A connection that is upgraded keeps its [`Seat`] as long as somebody speaks on it, though HTTP
//! has done with it.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// How many connections each client has, and may have.
#[derive(Debug, Clone)]
pub(super) struct Clients {
    open: Arc<Mutex<HashMap<IpAddr, usize>>>,
    most: usize,
}

/// One connection of a client; leaving it out of scope gives it back.
#[derive(Debug)]
pub(super) struct Place(Clients, IpAddr);

impl Clients {
    /// Nobody is connected yet; `most` connections of one client at once.
    pub(super) fn new(most: usize) -> Self {
        let open = Arc::default();
        Self { open, most }
    }

    /// One more connection of `client`, unless it has as many as it may.
    pub(super) fn enter(&self, client: IpAddr) -> Option<Place> {
        let mut clients = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let count = clients.entry(client).or_default();
        if *count >= self.most {
            return None;
        }
        *count += 1;
        Some(Place(self.clone(), client))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut clients = self.0.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = clients.get_mut(&self.1) {
            *count -= 1;
            if *count == 0 {
                clients.remove(&self.1);
            }
        }
    }
}

/// The connections of a listener.
#[derive(Debug)]
pub(super) struct Seats {
    room: Arc<Semaphore>,
    clients: Clients,
}

/// One connection of a listener; an extension of every request. Whoever holds a copy keeps the
/// connection counted.
#[derive(Debug, Clone)]
pub(super) struct Seat {
    _kept: Arc<(Place, OwnedSemaphorePermit)>,
}

impl Seats {
    /// `most` connections at once, `of_one` of one client.
    pub(super) fn new(most: usize, of_one: usize) -> Self {
        Self {
            room: Arc::new(Semaphore::new(most)),
            clients: Clients::new(of_one),
        }
    }

    /// Waits for room and then for a connection; without a seat its client has too many. Nothing
    /// is lost when this is dropped while it waits.
    ///
    /// # Errors
    /// When the connection is gone or the system cannot take it.
    pub(super) async fn accept(
        &self,
        socket: &TcpListener,
    ) -> io::Result<(TcpStream, SocketAddr, Option<Seat>)> {
        let room = self.room.clone().acquire_owned().await;
        let room = room.map_err(io::Error::other)?;
        let (stream, address) = socket.accept().await?;
        let place = self.clients.enter(address.ip());
        let seat = place.map(|place| Seat {
            _kept: Arc::new((place, room)),
        });
        Ok((stream, address, seat))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn a_seat_counts_until_its_last_copy_is_gone() {
        let socket = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = socket.local_addr().unwrap();
        let seats = Seats::new(2, 1);
        let _first = TcpStream::connect(address).await.unwrap();
        let (_, _, first) = seats.accept(&socket).await.unwrap();
        let upgraded = first.clone().expect("the first of its client");
        drop(first);
        let _second = TcpStream::connect(address).await.unwrap();
        let (_, _, second) = seats.accept(&socket).await.unwrap();
        assert!(second.is_none(), "its client has one, upgraded");
        drop(upgraded);
        let _third = TcpStream::connect(address).await.unwrap();
        let (_, _, third) = seats.accept(&socket).await.unwrap();
        assert!(third.is_some());
    }

    #[tokio::test]
    async fn nobody_is_accepted_when_there_is_no_room() {
        let socket = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = socket.local_addr().unwrap();
        let seats = Seats::new(1, 8);
        let _clients = (
            TcpStream::connect(address).await.unwrap(),
            TcpStream::connect(address).await.unwrap(),
        );
        let (_, _, first) = seats.accept(&socket).await.unwrap();
        let waiting = tokio::time::timeout(Duration::from_millis(100), seats.accept(&socket));
        assert!(waiting.await.is_err(), "there is one seat");
        drop(first);
        let next = tokio::time::timeout(Duration::from_secs(60), seats.accept(&socket));
        let (_, _, second) = next.await.expect("a seat is free").unwrap();
        assert!(second.is_some());
    }
}
