//! Every call of a client of the AWS SDK as an external call, its body included.

use std::borrow::Cow;
use std::future::poll_fn;
use std::pin::pin;

use aws_smithy_runtime_api::box_error::BoxError;
use aws_smithy_runtime_api::client::connector_metadata::ConnectorMetadata;
use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpClient,
    SharedHttpConnector,
};
use aws_smithy_runtime_api::client::interceptors::context::InterceptorContext;
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_runtime_api::client::retries::classifiers::{ClassifyRetry, RetryAction};
use aws_smithy_runtime_api::client::runtime_components::{
    RuntimeComponents, RuntimeComponentsBuilder,
};
use aws_smithy_types::body::SdkBody;
use aws_smithy_types::config_bag::ConfigBag;
use http_body::Body as _;

use super::called::CalledBody;
use crate::deadline::LongCall;
use crate::error::Cut;

/// An HTTP client for the AWS SDK that makes every call of the SDK a call to an external system.
///
/// What [`external`](crate::ExternalExt::external) does for one future, for all requests that the
/// SDK sends through the HTTP client that this one wraps: counted, timed, refused past a hard
/// limit, and ended by the [`external_timeout`](crate::Budget::external_timeout) of the unit of
/// work that sends it. It goes where the SDK takes its HTTP client, and not among its interceptors:
/// these can neither drop a call nor wait.
///
/// ```text
/// use aws_smithy_http_client::{Builder, tls};
///
/// let https = tls::Provider::Rustls(tls::rustls_provider::CryptoMode::AwsLc);
/// let calls = ExternalHttpClient::by_service(Builder::new().tls_provider(https).build_https());
/// let config = aws_config::from_env().http_client(calls.clone()).load().await;
/// let s3 = aws_sdk_s3::config::Builder::from(&config).retry_classifier(calls).build();
/// let s3 = aws_sdk_s3::Client::from_conf(s3);
/// ```
///
/// Each attempt is a call of its own, which ends with the body of its response, or when that is
/// dropped: a `GetObject` lasts until its object has been read. Requests that a client makes by
/// itself, such as for credentials, count for the work that waits for them.
///
/// # Errors
///
/// A call that is refused or cut ends in an `SdkError`, or an error of its `ByteStream`, in which
/// [`Cut::find`] finds the cut. The SDK does not retry a call that was refused, or that was cut
/// before there was a response. It retries one whose body was cut if the operation reads the body
/// whole, such as `ListObjectsV2`, unless this client is its `retry_classifier` as well.
///
/// # Examples
///
/// ```
/// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
/// use std::time::Duration;
/// use aws_smithy_runtime_api::client::http::{
///     HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpConnector,
///     http_client_fn,
/// };
/// use aws_smithy_runtime_api::client::orchestrator::HttpRequest;
/// # use aws_smithy_runtime_api::client::runtime_components::RuntimeComponentsBuilder;
/// use request_budget::http::ExternalHttpClient;
/// use request_budget::{Budget, BudgetExt, Cut};
///
/// /// A service that never answers.
/// #[derive(Debug)]
/// struct Silent;
///
/// impl HttpConnector for Silent {
///     fn call(&self, _: HttpRequest) -> HttpConnectorFuture {
///         HttpConnectorFuture::new(std::future::pending())
///     }
/// }
///
/// let silent = http_client_fn(|_, _| SharedHttpConnector::new(Silent));
/// let client = ExternalHttpClient::new("s3", silent);
/// # let components = RuntimeComponentsBuilder::for_tests().build().unwrap();
/// // What the SDK does to send a request:
/// let settings = HttpConnectorSettings::default();
/// let connector = client.http_connector(&settings, &components);
/// let call = connector.call(HttpRequest::get("http://s3.invalid/bucket/key").unwrap());
///
/// let budget = Budget::new().external_timeout(Duration::from_millis(500));
/// let error = call.budgeted("order", budget).await.unwrap().unwrap_err();
/// let cut = Cut::find(&error).unwrap().to_string();
/// assert!(cut.ends_with("limit 500ms: call to \"s3\", 500ms in all"), "{cut}");
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct ExternalHttpClient {
    inner: SharedHttpClient,
    name: Name,
}

#[derive(Debug, Clone)]
enum Name {
    Fixed(Cow<'static, str>),
    Service,
}

impl Name {
    fn of(&self, request: &HttpRequest) -> Cow<'static, str> {
        match self {
            Self::Fixed(name) => name.clone(),
            Self::Service => {
                let service = service(request).map(ToOwned::to_owned);
                service.map_or(Cow::Borrowed("aws"), Cow::Owned)
            }
        }
    }
}

/// The service that a client of the SDK is for, from its `x-amz-user-agent`: `api/s3/1.2.3`.
fn service(request: &HttpRequest) -> Option<&str> {
    let parts = request.headers().get("x-amz-user-agent")?.split(' ');
    let service = parts.filter_map(|part| part.strip_prefix("api/")).next()?;
    service.split('/').next()
}

impl ExternalHttpClient {
    /// A client for calls to one system, which has this name.
    #[must_use]
    pub fn new(name: impl Into<Cow<'static, str>>, inner: impl HttpClient + 'static) -> Self {
        Self { inner: SharedHttpClient::new(inner), name: Name::Fixed(name.into()) }
    }

    /// A client for calls to any service of AWS, each a system of its own: `s3`, `dynamodb`. What
    /// names no service is `aws`.
    #[must_use]
    pub fn by_service(inner: impl HttpClient + 'static) -> Self {
        Self { inner: SharedHttpClient::new(inner), name: Name::Service }
    }
}

impl HttpClient for ExternalHttpClient {
    fn http_connector(
        &self,
        settings: &HttpConnectorSettings,
        components: &RuntimeComponents,
    ) -> SharedHttpConnector {
        let inner = self.inner.http_connector(settings, components);
        SharedHttpConnector::new(ExternalConnector { inner, name: self.name.clone() })
    }

    fn validate_base_client_config(
        &self,
        components: &RuntimeComponentsBuilder,
        config: &ConfigBag,
    ) -> Result<(), BoxError> {
        HttpClient::validate_base_client_config(&self.inner, components, config)
    }

    fn validate_final_config(
        &self,
        components: &RuntimeComponents,
        config: &ConfigBag,
    ) -> Result<(), BoxError> {
        HttpClient::validate_final_config(&self.inner, components, config)
    }

    fn connector_metadata(&self) -> Option<ConnectorMetadata> {
        self.inner.connector_metadata()
    }
}

/// Forbids the SDK to retry a call that was refused or cut.
impl ClassifyRetry for ExternalHttpClient {
    fn classify_retry(&self, context: &InterceptorContext) -> RetryAction {
        match context.output_or_error() {
            Some(Err(error)) if Cut::find(error).is_some() => RetryAction::RetryForbidden,
            _ => RetryAction::NoActionIndicated,
        }
    }

    fn name(&self) -> &'static str {
        "request-budget"
    }
}

#[derive(Debug)]
struct ExternalConnector {
    inner: SharedHttpConnector,
    name: Name,
}

impl HttpConnector for ExternalConnector {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let (inner, name) = (self.inner.clone(), self.name.of(&request));
        HttpConnectorFuture::new(async move {
            let mut call = LongCall::begin(&name).await.map_err(cut)?;
            let mut answer = pin!(inner.call(request));
            match poll_fn(|cx| call.poll(cx, |cx| answer.as_mut().poll(cx))).await {
                Ok(answer) => answer.map(|response| with_call(response, call)),
                Err(error) => Err(cut(error)),
            }
        })
    }
}

/// Not a timeout to the SDK, which would retry after one.
fn cut(cut: Cut) -> ConnectorError {
    ConnectorError::other(cut.into(), None)
}

/// The response with a body that ends the call.
fn with_call(mut response: HttpResponse, mut call: LongCall) -> HttpResponse {
    let body = response.body();
    if body.is_end_stream() || body.bytes().is_some() {
        call.end();
    } else {
        let body = CalledBody::new(response.take_body(), call);
        *response.body_mut() = SdkBody::from_body_1_x(body);
    }
    response
}
