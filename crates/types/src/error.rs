//! One error type with containerd's classes. Context is added as the error rises; the class decides
//! the status that a client sees, and its text ends the message (`<context>: <detail>: <class>`).

use std::fmt;

/// Result with [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The kinds of failure that clients tell apart. Each has a fixed text, which ends messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorClass {
    /// The request itself is wrong.
    InvalidArgument,
    /// The object does not exist in this namespace.
    NotFound,
    /// The object exists already.
    AlreadyExists,
    /// The caller may not do this.
    PermissionDenied,
    /// A limit is reached.
    ResourceExhausted,
    /// The state of the object forbids it.
    FailedPrecondition,
    /// Two changes collided.
    Conflict,
    /// Nothing changed.
    NotModified,
    /// Given up half-way.
    Aborted,
    /// An offset lies outside of the object.
    OutOfRange,
    /// No such method or feature.
    NotImplemented,
    /// A bug or an invariant broken on disk.
    Internal,
    /// Try again later.
    Unavailable,
    /// Data is gone or damaged.
    DataLoss,
    /// Credentials are missing or wrong.
    Unauthenticated,
    /// The caller's time is over.
    DeadlineExceeded,
    /// The caller went away.
    Canceled,
    /// Anything else.
    Unknown,
}

impl ErrorClass {
    /// The text that ends a message of this class.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::InvalidArgument => "invalid argument",
            Self::NotFound => "not found",
            Self::AlreadyExists => "already exists",
            Self::PermissionDenied => "permission denied",
            Self::ResourceExhausted => "resource exhausted",
            Self::FailedPrecondition => "failed precondition",
            Self::Conflict => "conflict",
            Self::NotModified => "not modified",
            Self::Aborted => "aborted",
            Self::OutOfRange => "out of range",
            Self::NotImplemented => "not implemented",
            Self::Internal => "internal",
            Self::Unavailable => "unavailable",
            Self::DataLoss => "data loss",
            Self::Unauthenticated => "unauthenticated",
            Self::DeadlineExceeded => "context deadline exceeded",
            Self::Canceled => "context canceled",
            Self::Unknown => "unknown",
        }
    }
}

/// A failure: its class, what was tried on what and why it failed, and perhaps what to do next.
#[derive(Clone, Debug)]
pub struct Error {
    class: ErrorClass,
    message: String,
    hint: Option<String>,
}

impl Error {
    /// An error whose text ends with the class text: `<message>: <class>`.
    pub fn new(class: ErrorClass, message: impl fmt::Display) -> Self {
        let (message, text) = (message.to_string(), class.text());
        let message = match class {
            // Clients see the bare text; `: unknown` says nothing and is not sent.
            ErrorClass::Unknown => message,
            _ if message.is_empty() || message == text => text.to_owned(),
            _ if message.ends_with(&format!(": {text}")) => message,
            _ => format!("{message}: {text}"),
        };
        Self { class, message, hint: None }
    }

    /// An error whose text is exactly `message`: for the few answers that carry no class text.
    pub fn bare(class: ErrorClass, message: impl fmt::Display) -> Self {
        Self { class, message: message.to_string(), hint: None }
    }

    /// [`ErrorClass::InvalidArgument`].
    pub fn invalid_argument(message: impl fmt::Display) -> Self {
        Self::new(ErrorClass::InvalidArgument, message)
    }

    /// [`ErrorClass::NotFound`].
    pub fn not_found(message: impl fmt::Display) -> Self {
        Self::new(ErrorClass::NotFound, message)
    }

    /// [`ErrorClass::AlreadyExists`].
    pub fn already_exists(message: impl fmt::Display) -> Self {
        Self::new(ErrorClass::AlreadyExists, message)
    }

    /// [`ErrorClass::FailedPrecondition`].
    pub fn failed_precondition(message: impl fmt::Display) -> Self {
        Self::new(ErrorClass::FailedPrecondition, message)
    }

    /// [`ErrorClass::NotImplemented`].
    pub fn not_implemented(message: impl fmt::Display) -> Self {
        Self::new(ErrorClass::NotImplemented, message)
    }

    /// [`ErrorClass::Unavailable`].
    pub fn unavailable(message: impl fmt::Display) -> Self {
        Self::new(ErrorClass::Unavailable, message)
    }

    /// [`ErrorClass::Internal`].
    pub fn internal(message: impl fmt::Display) -> Self {
        Self::new(ErrorClass::Internal, message)
    }

    /// [`ErrorClass::Unknown`]: the text alone.
    pub fn unknown(message: impl fmt::Display) -> Self {
        Self::new(ErrorClass::Unknown, message)
    }

    /// The class, which decides the status.
    #[must_use]
    pub fn class(&self) -> ErrorClass {
        self.class
    }

    /// The whole text, class text included.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }

    /// What a person can do about it, if known. Never part of the message.
    #[must_use]
    pub fn hint(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// The same error with a hint.
    #[must_use]
    pub fn with_hint(mut self, hint: impl fmt::Display) -> Self {
        self.hint = Some(hint.to_string());
        self
    }

    /// The same error with `context: ` before its message.
    #[must_use]
    pub fn context(mut self, context: impl fmt::Display) -> Self {
        self.message = format!("{context}: {}", self.message);
        self
    }

    /// Whether the class is NotFound.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        self.class == ErrorClass::NotFound
    }

    /// Whether the class is AlreadyExists.
    #[must_use]
    pub fn is_already_exists(&self) -> bool {
        self.class == ErrorClass::AlreadyExists
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

/// An operating system error keeps its text, in the words that C's `strerror` and Go use
/// (`no such file or directory`), since clients match them; only the kinds that clients tell
/// apart get a class.
impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Self {
        let class = match error.kind() {
            std::io::ErrorKind::NotFound => ErrorClass::NotFound,
            std::io::ErrorKind::AlreadyExists => ErrorClass::AlreadyExists,
            std::io::ErrorKind::PermissionDenied => ErrorClass::PermissionDenied,
            std::io::ErrorKind::StorageFull => ErrorClass::ResourceExhausted,
            _ => ErrorClass::Unknown,
        };
        let text = error.to_string();
        let text = text.split(" (os error").next().unwrap_or_default();
        // Go prints errno texts in lower case.
        let mut chars = text.chars();
        let text = match (error.raw_os_error(), chars.next()) {
            (Some(_), Some(first)) => first.to_lowercase().chain(chars).collect(),
            _ => text.to_owned(),
        };
        Self::bare(class, text)
    }
}

/// Adds context to results on their way up.
pub trait ResultExt<T> {
    /// Puts `context: ` before the message of an error.
    ///
    /// # Errors
    /// The same error, with more context.
    fn context(self, context: impl fmt::Display) -> Result<T>;

    /// As [`ResultExt::context`], computed only on failure.
    ///
    /// # Errors
    /// The same error, with more context.
    fn with_context<D: fmt::Display>(self, context: impl FnOnce() -> D) -> Result<T>;
}

impl<T, E: Into<Error>> ResultExt<T> for std::result::Result<T, E> {
    fn context(self, context: impl fmt::Display) -> Result<T> {
        self.map_err(|error| error.into().context(context))
    }

    fn with_context<D: fmt::Display>(self, context: impl FnOnce() -> D) -> Result<T> {
        self.map_err(|error| error.into().context(context()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn class_text_ends_the_message_once() {
        assert_eq!(Error::not_found("image \"a\"").to_string(), "image \"a\": not found");
        assert_eq!(Error::not_found("x: not found").to_string(), "x: not found");
        assert_eq!(Error::not_found("").to_string(), "not found");
        assert_eq!(Error::unknown("odd").to_string(), "odd");
        let error = Error::bare(ErrorClass::InvalidArgument, "Container.ID required");
        assert_eq!(error.context("update").to_string(), "update: Container.ID required");
    }

    #[test]
    fn operating_system_errors_read_as_clients_expect() {
        let error = Error::from(std::io::Error::from_raw_os_error(2));
        assert_eq!(error.to_string(), "no such file or directory");
        assert!(error.is_not_found());
    }
}
