SwaggerUIBundle({
  url: "/schema/openapi.json",
  dom_id: "#document",
  deepLinking: true,
  defaultModelsExpandDepth: 0,
  displayRequestDuration: true,
  queryConfigEnabled: false,
  validatorUrl: null,
});
