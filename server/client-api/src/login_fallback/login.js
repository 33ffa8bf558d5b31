"use strict";

// Parameters of /login that are no credentials are handed on from the page's address.
const handedOn = () => {
  const query = new URLSearchParams(window.location.search);
  const parameters = {};
  for (const name of ["device_id", "initial_device_display_name"]) {
    if (query.has(name)) parameters[name] = query.get(name);
  }
  if (query.get("refresh_token") === "true") parameters.refresh_token = true;
  return parameters;
};

const logIn = async (user, password) => {
  const identifier = { type: "m.id.user", user };
  const body = { ...handedOn(), type: "m.login.password", identifier, password };
  const answer = await fetch("../../../client/v3/login", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  });
  const response = await answer.json();
  if (!answer.ok) throw new Error(response.error || "The server refused.");
  return response;
};

const form = document.getElementById("login");
const message = document.getElementById("message");
const button = document.getElementById("submit");

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  button.disabled = true;
  message.textContent = "Logging in\u2026";
  try {
    const response = await logIn(form.elements.user.value, form.elements.password.value);
    form.elements.password.value = "";
    form.hidden = true;
    message.textContent = "You are logged in.";
    window.matrixLogin?.onLogin?.(response);
  } catch (error) {
    message.textContent = error.message;
    button.disabled = false;
  }
});
