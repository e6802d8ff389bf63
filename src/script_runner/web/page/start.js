// Shows this server's own description. Nothing is asked of any other host.
SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#page",
  deepLinking: true,
  defaultModelsExpandDepth: 0,
  displayRequestDuration: true,
  tryItOutEnabled: true,
  validatorUrl: null, // else the description is sent to a validator on the Internet
  onComplete() {
    const title = document.querySelector("#page .info .title");
    if (title) document.title = title.firstChild.textContent;
  },
});
