import "../fragment";
import { createApp } from "vue";
import { tellDocument } from "../i18n/language";
import CardPage from "./CardPage.vue";
import { startEmbedding } from "./embedding";
import "../styles/tokens.css";
import "../styles/base.css";
import "../styles/controls.css";
import "./card.css";

tellDocument();
startEmbedding();
createApp(CardPage).mount("#app");
