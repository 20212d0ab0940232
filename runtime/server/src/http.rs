//! Connections, routes, and the limits of both.

use crate::answer;
use crate::ask::{Kind, Question};
use crate::error::Refused;
use crate::patience::Patient;
use crate::served::Served;
use crate::stream::Events;
use crate::{Serving, failed};
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use futures_core::Stream;
use hyper::body::Body as _;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use lapidary_language::Error;
use serde_json::{Value, json};
use std::future::poll_fn;
use std::io::Write;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Most connections at a time; more wait to be accepted.
const CONNECTIONS: usize = 512;

/// Most bytes of a request.
const MAX_BODY: usize = 4 << 20;

/// Most bytes of a request that is too long: they are read, and forgotten.
const MAX_SKIPPED: usize = 4 * MAX_BODY;

/// Most bytes of all requests that are being read or have not begun to be answered.
const ALL_BODIES: usize = 64 << 20;

/// Bytes that are counted together.
const UNIT: usize = 1024;

/// Bytes of a connection's buffer: the longest head of a request.
const BUFFER: usize = 32 << 10;

/// Time for what runs when the server is told to end.
const GRACE: Duration = Duration::from_secs(30);

/// Threads that encode prompts.
const ENCODERS: usize = 2;

struct App {
    served: Arc<Served>,
    /// Room for bytes of requests, in units.
    room: Arc<Semaphore>,
    timeout: Duration,
}

/// Serves until a signal comes.
pub fn serve(address: SocketAddr, serving: &Serving, served: Served) -> Result<(), Error> {
    let cannot = |what: &str, e: std::io::Error| {
        failed(
            format!("{what}: {e}"),
            "is the address one of this machine, and free? is the port above 1023?",
        )
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(ENCODERS)
        .build()
        .map_err(|e| cannot("the server", e))?;
    let served = Arc::new(served);
    let app = Arc::new(App {
        served: Arc::clone(&served),
        room: Arc::new(Semaphore::new(ALL_BODIES / UNIT)),
        timeout: serving.timeout,
    });
    let done = runtime.block_on(async {
        let listener = TcpListener::bind(address).await;
        let listener = listener.map_err(|e| cannot(&address.to_string(), e))?;
        let own = listener
            .local_addr()
            .map_err(|e| cannot("the address", e))?;
        // Whoever started the server may read where it is; a closed output is no error.
        let mut out = std::io::stdout();
        let _ = writeln!(out, "listening on http://{own}").and_then(|()| out.flush());
        run(listener, app).await.map_err(|e| cannot("signals", e))
    });
    // Ends what is still being sent, and so what is still being written.
    runtime.shutdown_timeout(Duration::from_secs(1));
    served.queue().join();
    done
}

async fn run(listener: TcpListener, app: Arc<App>) -> std::io::Result<()> {
    let mut ends = [
        signal(SignalKind::interrupt())?,
        signal(SignalKind::terminate())?,
    ];
    let service = TowerToHyperService::new(router(Arc::clone(&app)));
    let graceful = GracefulShutdown::new();
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(app.timeout)
        .max_buf_size(BUFFER);
    loop {
        let next = async {
            let place = Arc::clone(&places).acquire_owned().await;
            (listener.accept().await, place)
        };
        let (accepted, place) = tokio::select! {
            () = any(&mut ends) => break,
            next = next => next,
        };
        let Ok((stream, _)) = accepted else {
            // Too many open files, or a client that has left already.
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        // Pieces are small, and each is waited for.
        let _ = stream.set_nodelay(true);
        let stream = TokioIo::new(Patient::new(stream, app.timeout));
        let connection = graceful.watch(http.serve_connection(stream, service.clone()));
        tokio::spawn(async move {
            // What goes wrong with a connection is its client's.
            let _ = connection.await;
            drop(place);
        });
    }
    drop(listener);
    app.served.queue().close();
    eprintln!("ending: {} texts are left", app.served.queue().texts());
    tokio::select! {
        () = graceful.shutdown() => {}
        () = tokio::time::sleep(GRACE) => {}
        () = any(&mut ends) => {}
    }
    Ok(())
}

/// Waits for one of these.
async fn any(signals: &mut [tokio::signal::unix::Signal; 2]) {
    let [a, b] = signals;
    tokio::select! {
        _ = a.recv() => {}
        _ = b.recv() => {}
    }
}

fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/health", get(health))
        .route("/v1/models", get(models))
        .route("/v1/models/{*name}", get(model))
        .route("/v1/completions", post(completions))
        .route("/v1/chat/completions", post(chat))
        .route("/v1/embeddings", post(embeddings))
        .fallback(|| async {
            Refused::new(StatusCode::NOT_FOUND, "there is nothing at this address")
        })
        .method_not_allowed_fallback(|| async {
            Refused::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "this address takes another method",
            )
        })
        .with_state(app)
}

async fn health(State(app): State<Arc<App>>) -> Response {
    let queue = app.served.queue();
    match queue.is_well() {
        true => Json(json!({"status": "ok", "texts": queue.texts()})).into_response(),
        false => Refused::unavailable("the model has stopped").into_response(),
    }
}

async fn models(State(app): State<Arc<App>>) -> Json<Value> {
    Json(json!({"object": "list", "data": [app.served.name().described()]}))
}

async fn model(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
) -> Result<Json<Value>, Refused> {
    let own = app.served.name();
    match name == own.id {
        true => Ok(Json(own.described())),
        false => Err(Refused::model(&name, &own.id)),
    }
}

async fn embeddings(State(app): State<Arc<App>>, request: Request) -> Result<Response, Refused> {
    let embeddings = Arc::clone(app.served.embeddings()?);
    let own = Arc::clone(&embeddings);
    let question = understood(&app, request, move |body| own.read(body)).await?;
    let answer = embeddings.answer(question).await?;
    let headers = [(header::CONTENT_TYPE, "application/json")];
    Ok((headers, Body::from_stream(answer)).into_response())
}

async fn completions(State(app): State<Arc<App>>, request: Request) -> Result<Response, Refused> {
    answer(app, Kind::Completion, request).await
}

async fn chat(State(app): State<Arc<App>>, request: Request) -> Result<Response, Refused> {
    answer(app, Kind::Chat, request).await
}

async fn answer(app: Arc<App>, kind: Kind, request: Request) -> Result<Response, Refused> {
    let asked = Arc::clone(app.served.text()?);
    let own = Arc::clone(&asked);
    let mut question: Question =
        understood(&app, request, move |body| own.read(kind, body)).await?;
    let parts = asked.begin(&mut question)?;
    if !question.stream {
        let whole = answer::whole(&asked, &question, parts).await?;
        return Ok(Json(whole).into_response());
    }
    let events = Events::new(asked, question, parts);
    let headers = [
        (header::CONTENT_TYPE, "text/event-stream"),
        (header::CACHE_CONTROL, "no-cache"),
    ];
    Ok((headers, Body::from_stream(events)).into_response())
}

/// What a request asks for, read by a thread on which that may take a while.
async fn understood<Q: Send + 'static>(
    app: &App,
    request: Request,
    understand: impl FnOnce(&[u8]) -> Result<Q, Refused> + Send + 'static,
) -> Result<Q, Refused> {
    let body = read(app, request.into_body()).await?;
    let read = tokio::task::spawn_blocking(move || {
        let question = understand(&body.bytes);
        drop(body);
        question
    });
    read.await
        .map_err(|_| Refused::failed("the request could not be read"))?
}

/// A request's bytes, and the room that they take.
struct Bytes {
    bytes: Vec<u8>,
    room: Option<OwnedSemaphorePermit>,
}

/// Reads a request within the limits of size and time.
async fn read(app: &App, body: Body) -> Result<Bytes, Refused> {
    let too_long = || {
        let message = format!("the request has more than {MAX_BODY} bytes");
        Refused::new(StatusCode::PAYLOAD_TOO_LARGE, message)
    };
    if body.size_hint().lower() > MAX_SKIPPED as u64 {
        return Err(too_long());
    }
    let mut stream = body.into_data_stream();
    let mut all = Bytes {
        bytes: vec![],
        room: None,
    };
    let mut length = 0;
    let reading = async {
        while let Some(piece) = poll_fn(|cx| Pin::new(&mut stream).poll_next(cx)).await {
            let piece = piece.map_err(|e| Refused::wrong(format!("the request: {e}")))?;
            let before = length;
            length += piece.len();
            if length > MAX_BODY {
                // A client that is still sending would not see the answer.
                all.bytes = vec![];
                all.room = None;
                if length > MAX_SKIPPED {
                    break;
                }
                continue;
            }
            let more = length.div_ceil(UNIT) - before.div_ceil(UNIT);
            let room = Arc::clone(&app.room).try_acquire_many_owned(more as u32);
            let room =
                room.map_err(|_| Refused::unavailable("too many long requests at a time"))?;
            match &mut all.room {
                Some(all) => all.merge(room),
                none => *none = Some(room),
            }
            all.bytes.extend_from_slice(&piece);
        }
        Ok(())
    };
    let done = tokio::time::timeout(app.timeout, reading).await;
    if length > MAX_BODY {
        return Err(too_long());
    }
    match done {
        Ok(done) => done.map(|()| all),
        Err(_) => {
            let message = "the request did not come in time";
            Err(Refused::new(StatusCode::REQUEST_TIMEOUT, message))
        }
    }
}
