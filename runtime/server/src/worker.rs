//! The thread that runs the model, and the places of those who wait for it.

use crate::error::Refused;
use crate::failed;
use lapidary_language::Error;
use lapidary_runtime::pool::pin_this_thread;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// A thread that does jobs, each of which has a place, and the way to it.
pub struct Worker<J> {
    /// Places for texts that run or wait.
    places: Arc<Semaphore>,
    all: usize,
    jobs: Mutex<Option<Sender<J>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl<J: Send + 'static> Worker<J> {
    /// Starts it, for so many texts that run or wait; `work` does the jobs until nobody can give more. The thread stays on one core
    /// where it is one of as many as `pin`.
    pub fn start(
        places: usize,
        pin: Option<usize>,
        work: impl FnOnce(&Receiver<J>) + Send + 'static,
    ) -> Result<Worker<J>, Error> {
        let (send, receive) = channel();
        let thread = std::thread::Builder::new().name("model".to_owned());
        let thread = thread.spawn(move || {
            if let Some(threads) = pin {
                pin_this_thread(threads);
            }
            work(&receive);
        });
        let thread = thread.map_err(|e| failed(format!("no thread: {e}"), "end other programs"))?;
        Ok(Worker {
            places: Arc::new(Semaphore::new(places)),
            all: places,
            jobs: Mutex::new(Some(send)),
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Places for so many texts of a request, all of them or none.
    pub fn reserve(&self, count: usize) -> Result<OwnedSemaphorePermit, Refused> {
        if count > self.all {
            let message = format!(
                "{count} texts in one request, the server takes {}",
                self.all
            );
            return Err(Refused::wrong(message));
        }
        let places = Arc::clone(&self.places).try_acquire_many_owned(count as u32);
        places.map_err(|_| Refused::busy())
    }

    /// Gives it a job.
    pub fn give(&self, job: J) -> Result<(), Refused> {
        let jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        let jobs = jobs
            .as_ref()
            .ok_or_else(|| Refused::unavailable("the server is ending"))?;
        jobs.send(job)
            .map_err(|_| Refused::failed("the model has stopped"))
    }
}

/// What is to be known of a worker, whatever its jobs are.
pub trait Queue {
    /// Texts that run or wait.
    fn texts(&self) -> usize;

    /// Whether jobs are done at all.
    fn is_well(&self) -> bool;

    /// Takes no more jobs.
    fn close(&self);

    /// Takes no more jobs, and waits for those that somebody still wants.
    fn join(&self);
}

impl<J> Queue for Worker<J> {
    fn texts(&self) -> usize {
        self.all - self.places.available_permits()
    }

    fn is_well(&self) -> bool {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        thread.as_ref().is_some_and(|t| !t.is_finished())
    }

    fn close(&self) {
        let mut jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        jobs.take();
    }

    fn join(&self) {
        self.close();
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(thread) = thread.take() {
            // It has told its readers if it failed.
            let _ = thread.join();
        }
    }
}
